"""The manifest of a published checkpoint, and the check that a folder is what its manifest says.

The layout is described in docs/formats/published.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, Field, ValidationError, field_validator

from quantlib.errors import InvalidInputError, Problem
from quantlib.report.evaluation import Evaluation
from quantlib.report.model import HTML_NAME, JSON_NAME, Verdict
from quantlib.report.model_card import CARD_NAME
from quantlib.report.part import Part
from quantlib.report.provenance import PROVENANCE_NAME
from quantlib.runtime.foreign_json import parse_mapping
from quantlib.runtime.pydantic_faults import faults_of
from quantlib.store import FileRecord, Store, open_store
from quantlib.store.receipt import Digest, files_digest
from quantlib.store.transaction import difference

SCHEMA: Final = "quantlib/manifest/2"
MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "model.sig"
"""The signature over all other files, if there is one; see :mod:`quantlib.publishing.signing`."""

RECEIPTS_NAME = "receipts.json"
"""The receipts of the steps that the checkpoint rests on."""

DESCRIPTIONS = frozenset({JSON_NAME, HTML_NAME, CARD_NAME, PROVENANCE_NAME, RECEIPTS_NAME})
"""Files of a published folder that are no part of the checkpoint."""

PARALLEL_FILES = 4
"""That are read at once."""


class Figures(Part):
    """What the gate judged, in numbers; see :class:`quantlib.report.evaluation.Evaluation`."""

    perplexity_original: float
    perplexity_quantized: float
    kl_mean: float
    kl_standard_error: float
    top1_agreement: float
    engine: str


class Manifest(Part):
    """What a published folder holds. It is written last: a folder without it is not published.

    Attributes:
        name: Of the model.
        release: Counts what was published of the model to one destination, upwards from 1.
        published_at: When it was published, to the second.
        code: Version and digest of the code that published, by package.
        checkpoint: Digest of the checkpoint's files; its digits name the folder.
        by_reference: Whether the checkpoint's files lie in the store around the folder, which is
            ``published/<name>/<digest>`` in it, under their digests.
        files: Every file but the manifest and the signature, by path within the folder.
    """

    schema_: Annotated[Literal["quantlib/manifest/2"], Field(alias="schema")] = SCHEMA
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)]
    release: Annotated[int, Field(ge=1, le=2**53, strict=True)]
    published_at: AwareDatetime
    code: dict[str, str]
    checkpoint: Digest
    by_reference: bool = False
    gate: Verdict
    figures: Figures
    report: str
    source: dict[str, Any]
    recipe: Digest
    files: dict[str, FileRecord]

    @field_validator("files")
    @classmethod
    def _within_the_folder(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or str(path) != name or name == ".":
                raise ValueError(f"{name!r} is no plain path within the folder")
            if name in (MANIFEST_NAME, SIGNATURE_NAME):
                raise ValueError(f"{name!r} cannot be in the manifest")
        return files

    def decisive(self) -> dict[str, Any]:
        """All that it says but when it was published: two of equal value publish the same."""
        return self.model_dump(mode="json", exclude={"release", "published_at"})

    def to_json(self) -> bytes:
        """The manifest as indented JSON."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode() + b"\n"


def figures_of(evaluation: Evaluation) -> Figures:
    """The manifest's figures of an evaluation."""
    return Figures(
        perplexity_original=evaluation.original.perplexity,
        perplexity_quantized=evaluation.quantized.perplexity,
        kl_mean=evaluation.kl_mean,
        kl_standard_error=evaluation.kl_standard_error,
        top1_agreement=evaluation.top1_agreement,
        engine=f"{evaluation.engine} {evaluation.engine_version}",
    )


def read_manifest(published: Store) -> Manifest:
    """The manifest of a published folder.

    Args:
        published: The folder, as a store.

    Raises:
        InvalidInputError: There is none, or it is no valid one.
        StoreError: It cannot be read.
    """
    where = published.full_address(MANIFEST_NAME)
    return parse_manifest(read_manifest_bytes(published), where)


def read_manifest_bytes(published: Store) -> bytes:
    """The content of a published folder's manifest.

    Args:
        published: The folder, as a store.

    Raises:
        InvalidInputError: There is none.
        StoreError: It cannot be read.
    """
    if not published.exists(MANIFEST_NAME):
        raise not_published(published.full_address(MANIFEST_NAME))
    return bytes(published.read(MANIFEST_NAME))


def not_published(where: str) -> InvalidInputError:
    """That there is no manifest at an address."""
    return InvalidInputError.one(
        where, "there is no such file", "without it the checkpoint is not published"
    )


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in a file's content.

    Args:
        data: The content.
        where: The file's address, for people.

    Raises:
        InvalidInputError: It is no valid manifest.
    """
    try:
        return Manifest.model_validate(parse_mapping(data, where))
    except ValidationError as error:
        raise InvalidInputError.one(where, f"is no valid manifest: {faults_of(error)}") from None


@dataclass(frozen=True)
class Place:
    """Where a file of a published checkpoint lies."""

    store: Store
    path: str

    @property
    def address(self) -> str:
        """For people."""
        return self.store.full_address(self.path)

    def record(self) -> FileRecord:
        """What its store vouches for."""
        return self.store.record(self.path)


def places_of(published: Store, manifest: Manifest) -> dict[str, Place]:
    """Where each file of a published folder should lie: in it, or in the store around it.

    Raises:
        InvalidInputError: The files are said to lie in a store that is none.
    """
    places = {name: Place(published, name) for name in manifest.files}
    if manifest.by_reference:
        root, *middle = published.address.rsplit("/", 3)
        if middle[:1] != ["published"]:
            raise InvalidInputError.one(
                published.address,
                "names its files in the store around it, but does not lie in published/NAME of one",
                "move it back, or publish it to a folder of its own",
            )
        around = open_store(root)
        places |= {
            name: Place(around, record.blob)
            for name, record in checkpoint_files(manifest.files).items()
        }
    return places


def require_in_folder(address: str, manifest: Manifest) -> None:
    """Requires that a published checkpoint's files lie in its folder, where servers look for them.

    Args:
        address: Of the folder.
        manifest: Its manifest.

    Raises:
        InvalidInputError: They lie in the store around it.
    """
    if manifest.by_reference:
        raise InvalidInputError.one(
            address,
            "names its files in the store around it, which no service reads",
            "publish the checkpoint to a place outside of the store (publish.destination), and "
            "promote that",
        )


def verify_published(published: Store) -> None:
    """Checks that a folder holds what its manifest says, and nothing else.

    Args:
        published: The folder, as a store. Every file is checked with what its store vouches for: in
            a local folder it is read once and hashed.

    Raises:
        InvalidInputError: With everything that is wrong with it.
        StoreError: It cannot be read.
    """
    manifest = read_manifest(published)
    promised = promised_by_folder(published.address)
    problems = naming_problems(published.address, promised, manifest)
    problems += difference_problems(manifest, measure_folder(published, manifest, Place.record))
    if problems:
        raise InvalidInputError(problems)


@dataclass(frozen=True)
class Measured:
    """What is there of a published checkpoint, whatever its manifest says.

    Attributes:
        records: Size and sha256 of the files that the manifest names.
        addresses: Where each of the manifest's files is, or should be, for people.
        problems: What else is there that should not be, and what cannot be read.
    """

    records: Mapping[str, FileRecord]
    addresses: Mapping[str, str]
    problems: Sequence[Problem] = ()


def measure_folder(
    published: Store, manifest: Manifest, record: Callable[[Place], FileRecord]
) -> Measured:
    """Looks at every file of a published folder.

    Args:
        published: The folder, as a store.
        manifest: Its manifest.
        record: Tells size and sha256 of a file; called in several threads.

    Raises:
        InvalidInputError: The files are said to lie in a store that is none.
        StoreError: It cannot be read.
    """
    places = places_of(published, manifest)
    found = {file.path for file in published.list()}
    present = sorted(
        name
        for name, place in places.items()
        if (name in found if place.store is published else place.store.exists(place.path))
    )
    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        records = dict(
            zip(present, pool.map(record, [places[name] for name in present]), strict=True)
        )
    within = {name for name, place in places.items() if place.store is published}
    strangers = found - within - {MANIFEST_NAME, SIGNATURE_NAME}
    return Measured(
        records,
        {name: place.address for name, place in places.items()},
        [stranger(published.full_address(name)) for name in sorted(strangers)],
    )


def stranger(address: str) -> Problem:
    """That a file is there which the manifest does not name."""
    return Problem(address, "is not in the manifest")


def difference_problems(manifest: Manifest, measured: Measured) -> list[Problem]:
    """How what is there differs from what the manifest says."""
    problems = []
    for name, expected in manifest.files.items():
        where = measured.addresses[name]
        if name not in measured.records:
            problems.append(Problem(where, "there is no such file"))
        elif what := difference(measured.records[name], expected, "manifest"):
            problems.append(Problem(where, what))
    return problems + list(measured.problems)


def promised_by_folder(address: str) -> str:
    """The checkpoint's digest that a published folder is named by."""
    return f"sha256:{address.rpartition('/')[2]}"


def naming_problems(
    address: str, promised: str | None, manifest: Manifest, expected: str | None = None
) -> list[Problem]:
    """Whether a manifest is of the checkpoint that it should be of.

    Args:
        address: Of what is published.
        promised: The checkpoint's digest by the address; None where that says nothing of it.
        manifest: That is there.
        expected: What the checkpoint has to be; None for what the address promises.
    """
    problems = []
    where = f"{address}/{MANIFEST_NAME}"
    if expected is not None:
        if manifest.checkpoint != expected:
            what = f"is of the checkpoint {manifest.checkpoint}, not {expected}"
            problems.append(Problem(where, what))
    elif promised not in (None, manifest.checkpoint):
        problems.append(
            Problem(
                address,
                f"is not named by its checkpoint's digest, {manifest.checkpoint}",
                "say with --digest which checkpoint it has to be",
            )
        )
    if manifest.checkpoint != checkpoint_digest(manifest.files):
        problems.append(Problem(where, "its files do not have the checkpoint's digest"))
    return problems


def checkpoint_files(files: Mapping[str, FileRecord]) -> dict[str, FileRecord]:
    """The checkpoint among a published folder's files, without those that only describe it."""
    return {name: record for name, record in files.items() if name not in DESCRIPTIONS}


def checkpoint_digest(files: Mapping[str, FileRecord]) -> str:
    """The digest of a published folder's files, leaving out those that only describe them."""
    return files_digest(checkpoint_files(files))
