"""Which release a watched model has now, and what a recipe asks for on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantlib.checkpoint.source import StoreSource
from quantlib.errors import InvalidInputError
from quantlib.publishing.opening import open_destination
from quantlib.recipe import AskedRecipe, PublishSection
from quantlib.runtime.code_version import code_version
from quantlib.sources import FolderAddress, GgufAddress, HubAddress, S3Address, parse_address
from quantlib.sources.folder import open_folder
from quantlib.sources.inspection import model_files
from quantlib.sources.pinned import content_digest, pin
from quantlib.store import open_store
from quantlib.store.hashing import hash_file
from quantlib.store.receipt import digest_of
from quantlib.tasks.items import find_items, purpose_of
from quantlib.text.addresses import Text
from quantlib.text.places import find_text
from quantlib.text.wanted import wanted_texts


@dataclass(frozen=True)
class Release:
    """What a watched address means now.

    Attributes:
        address: The address, pinned: with a commit in the place of a branch, or with the digest.
        digest: Another one whenever the model is.
    """

    address: str
    digest: str


@dataclass(frozen=True)
class Job:
    """One recipe on one release.

    Attributes:
        destination: Where its checkpoint goes.
        digest: Of all that decides the checkpoint: model, recipe, texts, images and code.
        published: Where its checkpoint is; None where it is still to be made.
    """

    release: Release
    destination: str
    digest: str
    published: str | None


def resolve_release(address: str) -> Release:
    """What an address means now.

    A commit on the hub, sizes and ETags in object storage, and the content of local files.

    Raises:
        InvalidInputError: There is no such model or revision, or it is not open to this token.
        StepError: The hub cannot be asked, or has been asked too often.
        StoreError: Object storage or a file cannot be read.
    """
    match parse_address(address):
        case HubAddress() as hub:
            from quantlib.sources.hub import resolve_commit

            pinned = f"hf://{hub.repo}@{resolve_commit(hub)}"
            return Release(pinned, digest_of(pinned))
        case S3Address(prefix):
            from quantlib.sources.s3 import versions_digest

            return _pinned(prefix, versions_digest(StoreSource(open_store(prefix))))
        case FolderAddress(path):
            names = model_files(open_folder(path))
            return _pinned(str(path.absolute()), _digest_of_files([path / name for name in names]))
        case GgufAddress(path):
            return _pinned(str(path.absolute()), _digest_of_files([path]))


def _pinned(address: str, digest: str) -> Release:
    return Release(pin(address, digest), digest)


def destination_of(recipe: AskedRecipe, destination: str) -> str:
    """Where a watched recipe's checkpoints are published.

    Args:
        recipe: Names it, where ``destination`` does not.
        destination: Empty for the recipe's.

    Raises:
        InvalidInputError: Neither names it.
    """
    chosen = destination or recipe.publish.destination
    if not chosen:
        raise InvalidInputError.one(
            "publish.destination",
            "is missing, so nothing says what is published already",
            "set it in the recipe, or give a destination (--publish-to)",
        )
    return chosen


def find_job(
    recipe: AskedRecipe,
    destination: str,
    images: Sequence[str],
    *,
    source: str = "",
    num_ranges: int = 0,
) -> Job:
    """The job that a recipe asks for now, and whether it is done.

    Args:
        recipe: What is done with each release.
        destination: Where checkpoints are published; empty for the recipe's.
        images: What the steps run in.
        source: The model to watch; empty for the recipe's.
        num_ranges: As a run is given it; 0 for the recipe's.

    Raises:
        InvalidInputError: There is no model or no destination; or as :func:`resolve_release`.
        StepError: As :func:`resolve_release`.
        StoreError: As :func:`resolve_release`, or what is published cannot be read.
    """
    destination = destination_of(recipe, destination)
    address = source or recipe.model
    if not address:
        raise InvalidInputError.one(
            "model", "the recipe names none, so there is none to watch", "set it in the recipe"
        )
    release = resolve_release(address)
    texts: dict[str, str] = {
        purpose: find_text(Text.of(section)).version
        for purpose, section in wanted_texts(recipe).items()
    }
    texts |= {purpose_of(task): find_items(task).version for task in recipe.tasks.run}
    # However the model and the number of ranges were given, it is the same job.
    asked = recipe.model_copy(
        update={"model": None, "num_ranges": 1, "publish": PublishSection(name=recipe.publish.name)}
    )
    digest = digest_of(
        {
            "source": release.digest,
            "recipe": asked.digest(),
            "num_ranges": num_ranges or recipe.num_ranges,
            "texts": texts,
            "images": sorted(images),
            "code": code_version(),
        }
    )
    return Job(release, destination, digest, open_destination(destination).published_of(digest))


def _digest_of_files(files: Sequence[Path]) -> str:
    return content_digest((file.name, _hashed(file)) for file in files)


def _hashed(file: Path) -> str:
    try:
        return hash_file(file)
    except OSError as error:
        raise InvalidInputError.one(str(file), f"cannot be read: {error.strerror}") from None
