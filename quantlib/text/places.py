"""Where texts are: the ones that ship, files, object storage, data sets on a hub.

Nothing but listings is read of what is elsewhere; :func:`gather` brings what is elsewhere to
this machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from urllib.parse import unquote

from quantlib.errors import InvalidInputError
from quantlib.recipe import CalibrationSection, ValidationSection
from quantlib.sources.pinned import content_digest
from quantlib.store import Store, open_store
from quantlib.store.hashing import hash_file
from quantlib.store.receipt import digest_of
from quantlib.text.files import TextFile, local_file
from quantlib.text.formats import KNOWN_KINDS, kind_of

Purpose = Literal["calibration", "evaluation"]

ENOUGH_BYTES = 256 << 20
"""Files of a folder are taken, in the order of their names, until they hold so much."""

_TOKEN_BYTES = 32
"""Windows are chosen among four times as many, and few tokens have more than eight bytes."""

_SHIPPED = {"calibration": "calibration.jsonl", "evaluation": "heldout.jsonl"}
_DATASET = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+(?:/[\w.-]+)?)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/@\s]+|[^/@\s]+))?(?:/(?P<path>.+))?"
)
_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?")
_FORMS = (
    "give a file, a folder of files, s3://bucket/prefix, or hf://datasets/org/name@revision/path"
)


@dataclass(frozen=True)
class ShippedText:
    """The text that ships with quantlib."""

    purpose: Purpose


@dataclass(frozen=True)
class LocalText:
    """A file or a folder of this machine."""

    path: Path


@dataclass(frozen=True)
class ObjectText:
    """A file or a prefix in object storage."""

    address: str


@dataclass(frozen=True)
class HubText:
    """A data set on the hub, or part of one.

    Attributes:
        repo: ``org/name``.
        revision: A branch, a tag or a commit.
        path: A file or folder in it; empty for the files of ``config`` and ``split``.
        config: Name of a configuration.
    """

    repo: str
    revision: str = "main"
    path: str = ""
    config: str = ""


TextAddress = ShippedText | LocalText | ObjectText | HubText


@dataclass(frozen=True)
class Text:
    """A text that a recipe names.

    Attributes:
        dataset: Its address, as the recipe gives it; None for the text that ships.
        purpose: What it is for.
        split: Split of a data set on the hub.
        tokens: How many are wanted of it.
    """

    dataset: str | None
    purpose: Purpose
    split: str
    tokens: int

    @classmethod
    def of(cls, section: CalibrationSection | ValidationSection) -> Text:
        """The text of a recipe's section."""
        purpose: Purpose = (
            "calibration" if isinstance(section, CalibrationSection) else "evaluation"
        )
        tokens = section.num_samples * section.sequence_length
        return cls(section.dataset, purpose, section.split, tokens)

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return self.dataset or f"the {self.purpose} text that ships with quantlib"

    @property
    def enough(self) -> int:
        """Bytes that are enough of many files."""
        return max(ENOUGH_BYTES, self.tokens * _TOKEN_BYTES)


@dataclass(frozen=True)
class FoundText:
    """The files of a text, where they are.

    Attributes:
        name: What to call it, wherever it lay.
        origin: ``kind`` and, of a data set on the hub, ``repo`` and ``commit``.
        sizes: Bytes of the files, by name.
        version: Another one whenever the content is.
        more: Files that are not taken, since those that are hold enough.
        fetch: Brings a file to a folder of this machine, if it is not here, and says where it is.
        is_remote: Whether it has to come from elsewhere.
    """

    name: str
    origin: dict[str, Any]
    sizes: dict[str, int]
    version: str
    more: int
    fetch: Callable[[str, Path], Path]
    is_remote: bool = True

    def files(self, paths: dict[str, Path]) -> list[TextFile]:
        """What :func:`gather` gave, as files of text."""
        return [local_file(path, name) for name, path in paths.items()]


def parse_text(text: Text) -> TextAddress:
    """Reads the address of a text.

    Raises:
        InvalidInputError: It is no address of a kind that is supported.
    """
    dataset = text.dataset
    if dataset is None:
        return ShippedText(text.purpose)
    if dataset.startswith("s3://"):
        return ObjectText(dataset.rstrip("/"))
    if dataset.startswith("hf://"):
        match = _DATASET.fullmatch(dataset)
        if match is None:
            raise InvalidInputError.one(
                dataset, "is no data set on the hub", "give hf://datasets/org/name@revision/path"
            )
        revision = unquote(match["revision"] or "main")
        return HubText(match["repo"], revision, (match["path"] or "").strip("/"))
    path = dataset.removeprefix("file://")
    if "://" in path or not path.strip():
        raise InvalidInputError.one(dataset or "dataset", "unsupported kind of address", _FORMS)
    try:
        local = Path(path).expanduser()
        exists = local.exists()
    except (RuntimeError, OSError, ValueError) as error:
        raise InvalidInputError.one(dataset, f"is no path: {error}") from None
    if exists or kind_of(path) or path.startswith((".", "/", "~")) or path != dataset:
        return LocalText(local)
    match = _NAME.fullmatch(dataset)
    if match is None:
        raise InvalidInputError.one(dataset, "there is no such file or folder", _FORMS)
    return HubText(match["repo"], config=match["config"] or "")


def find_text(text: Text) -> FoundText:
    """Finds the files of a text; none of those elsewhere is read.

    Raises:
        InvalidInputError: There is no such text, or no file of it is of a kind that is known.
        StepError: The hub cannot be asked.
        StoreError: Object storage cannot be read.
    """
    match parse_text(text):
        case ShippedText(purpose):
            name = _SHIPPED[purpose]
            path = Path(__file__).parent / "data" / name
            origin = {"kind": "shipped", "purpose": purpose}
            return _local(text.name, origin, {name: path}, 0)
        case LocalText(path):
            return _find_local(text, path)
        case ObjectText(address):
            return _find_objects(text, address)
        case HubText() as address:
            from quantlib.text.hub import find_dataset

            return find_dataset(text, address)


@contextmanager
def gather(found: FoundText) -> Iterator[dict[str, Path]]:
    """The files of a text on this machine, by their names, until they are used.

    Raises:
        InvalidInputError: A file cannot be read.
        StepError: The network failed.
        StoreError: The same, of object storage.
    """
    with TemporaryDirectory() as folder:
        yield {name: found.fetch(name, Path(folder)) for name in found.sizes}


def digest_of_files(paths: dict[str, Path]) -> str:
    """``sha256:`` digest over names and contents.

    Raises:
        InvalidInputError: A file cannot be read.
    """
    return content_digest((name, _hashed(path)) for name, path in paths.items())


def take_enough(text: Text, sizes: dict[str, int]) -> tuple[dict[str, int], int]:
    """The first files, in the order of their names, that hold enough; and how many there are more.

    Raises:
        InvalidInputError: None is of a kind that is known.
    """
    known = {name: sizes[name] for name in sorted(sizes) if kind_of(name)}
    if not known:
        raise InvalidInputError.one(text.name, "holds no file of a kind that is known", KNOWN_KINDS)
    taken: dict[str, int] = {}
    for name, size in known.items():
        if taken and sum(taken.values()) >= text.enough:
            break
        taken[name] = size
    return taken, len(known) - len(taken)


def called(names: list[str], more: int) -> str:
    """What to call a text of some files."""
    count = len(names) + more
    return names[0] if count == 1 else f"{names[0]} and {count - 1} more files"


def _find_local(text: Text, path: Path) -> FoundText:
    if not path.exists():
        raise InvalidInputError.one(text.name, "there is no such file or folder")
    try:
        if path.is_file():
            sizes = {path.name: path.stat().st_size}
            root = path.parent
        else:
            root = path
            files = sorted(file for file in path.rglob("*") if file.is_file())
            sizes = {
                file.relative_to(root).as_posix(): file.stat().st_size
                for file in files
                if not any(part.startswith(".") for part in file.relative_to(root).parts)
            }
    except OSError as error:
        raise InvalidInputError.one(text.name, f"cannot be read: {error.strerror}") from None
    taken, more = take_enough(text, sizes)
    paths = {name: root / name for name in taken}
    return _local(called(list(taken), more), {"kind": "files"}, paths, more)


def _local(name: str, origin: dict[str, Any], paths: dict[str, Path], more: int) -> FoundText:
    sizes = {each: path.stat().st_size for each, path in paths.items()}
    return FoundText(
        name, origin, sizes, digest_of_files(paths), more, lambda each, _: paths[each], False
    )


def _find_objects(text: Text, address: str) -> FoundText:
    store = open_store(address)
    found = {file.path: (file.bytes, file.version) for file in store.list()}
    parent, _, name = address.rpartition("/")
    if not found and kind_of(name):
        store = open_store(parent)
        if store.exists(name):
            found = {name: _object_state(store, name)}
    if not found:
        raise InvalidInputError.one(text.name, "there is no such file or folder")
    taken, more = take_enough(text, {name: size for name, (size, _) in found.items()})
    version = digest_of([[name, *found[name]] for name in taken])

    def fetch(name: str, folder: Path) -> Path:
        store.export_file(name, folder / name)
        return folder / name

    return FoundText(called(list(taken), more), {"kind": "files"}, taken, version, more, fetch)


def _object_state(store: Store, name: str) -> tuple[int, str]:
    """Size and ETag of one object; listing what lies beside it could take long."""
    from quantlib.store.s3 import S3Store

    assert isinstance(store, S3Store)
    head = store.client.head_object(Bucket=store.bucket, Key=store.key(name))
    return int(head["ContentLength"]), head["ETag"].strip('"')


def _hashed(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise InvalidInputError.one(str(path), f"cannot be read: {error.strerror}") from None
