"""Where texts are: the ones that ship, files, object storage, data sets on a hub.

Nothing but listings is read of what is elsewhere; :func:`gather` brings what is elsewhere to
this machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from quantlib.errors import InvalidInputError
from quantlib.sources.pinned import content_digest
from quantlib.store import Store, open_store
from quantlib.store.hashing import hash_file
from quantlib.store.receipt import digest_of
from quantlib.text.addresses import (
    SHIPPED,
    HubText,
    LocalText,
    ObjectText,
    ShippedText,
    Text,
    parse_text,
)
from quantlib.text.beside import ImagesBeside, images_beside
from quantlib.text.formats import kind_of
from quantlib.text.found import FoundText, Gathered, take_enough
from quantlib.text.windows import Windowing

SHIPPED_TEXTS = Path(__file__).parent / "data"


def find_text(text: Text) -> FoundText:
    """Finds the files of a text; none of those elsewhere is read.

    Raises:
        InvalidInputError: There is no such text, or no file of it is of a kind that is known.
        StepError: The hub cannot be asked.
        StoreError: Object storage cannot be read.
    """
    match parse_text(text):
        case ShippedText(name):
            origin = {"kind": "shipped", "name": name}
            return _local(text.name, origin, SHIPPED_TEXTS, [SHIPPED[name]], 0)
        case LocalText(path):
            return _find_local(text, path)
        case ObjectText(address):
            return _find_objects(text, address)
        case HubText() as address:
            from quantlib.text.hub import find_dataset

            return find_dataset(text, address)


@contextmanager
def gather(found: FoundText, images: Windowing | None = None) -> Iterator[Gathered]:
    """The files of a text on this machine, until they are used.

    Args:
        found: The text.
        images: Which windows are wanted of it, so that the images come that rows of these name;
            None where none are looked at.

    Raises:
        InvalidInputError: A file cannot be read.
        StepError: The network failed.
        StoreError: The same, of object storage.
    """
    with TemporaryDirectory() as folder:
        paths = {name: found.fetch(name, Path(folder)) for name in found.sizes}
        beside = ImagesBeside()
        if images is not None:
            beside = images_beside(Gathered(paths, beside).files, images, found.has)
            paths |= {name: found.fetch(name, Path(folder)) for name in beside.names}
        yield Gathered(paths, beside)


def digest_of_files(paths: dict[str, Path]) -> str:
    """``sha256:`` digest over names and contents.

    Raises:
        InvalidInputError: A file cannot be read.
    """
    return content_digest((name, _hashed(path)) for name, path in paths.items())


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
    return _local(called(list(taken), more), {"kind": "files"}, root, list(taken), more)


def _local(
    called: str, origin: dict[str, Any], root: Path, names: list[str], more: int
) -> FoundText:
    paths = {name: root / name for name in names}
    return FoundText(
        called,
        origin,
        {name: path.stat().st_size for name, path in paths.items()},
        digest_of_files(paths),
        more,
        fetch=lambda name, _: root / name,
        has=lambda name: (root / name).is_file(),
        is_remote=False,
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

    name = called(list(taken), more)
    return FoundText(name, {"kind": "files"}, taken, version, more, fetch, store.exists)


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
