"""Reads the layers of an image as they come, to the last byte.

What a container sees of a layer is what its runtime makes of the archive. So that nobody has to ask
how another program reads an unusual one, a layer with files below ``models/`` must be, byte for
byte, the archive that publishing makes of them.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from quantlib.errors import InvalidInputError, StoreError
from quantlib.publishing.oci.layers import END, FOLDER, heads_of, padding
from quantlib.store import FileRecord

Receive = Callable[[str, int, Iterator[bytes]], FileRecord]
"""Gets the name of a file below ``models/``, its bytes and its content, and hashes it."""

_CHUNK = 1 << 20


def unpack(
    where: str, chunks: Iterable[bytes], digest: str, *, is_packed: bool, receive: Receive
) -> dict[str, FileRecord]:
    """The files below ``models/`` of a layer.

    Args:
        where: The layer, for people.
        chunks: Its bytes.
        digest: By which the image names it.
        is_packed: Whether it is compressed, by gzip; the layers of a base are.
        receive: Gets each file.

    Raises:
        StoreError: The registry gave another content.
        InvalidInputError: It is no archive, or holds something below ``models/`` that publishing
            does not write.
    """
    layer = _Layer(chunks)
    expected, seen = hashlib.sha256(), set[str]()
    records: dict[str, FileRecord] = {}
    try:
        file: Any = gzip.GzipFile(fileobj=layer) if is_packed else layer
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for entry in archive:
                name = _below(entry)
                if name is None:
                    continue
                content = archive.extractfile(entry) if entry.isfile() else None
                if content is None:
                    what = f"holds {entry.name}, which is no plain file"
                    raise InvalidInputError.one(where, what)
                for head in heads_of(name, entry.size, seen):
                    expected.update(head)
                records[name] = receive(name, entry.size, _hashing(content, expected))
                expected.update(padding(entry.size))
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InvalidInputError.one(where, f"is no archive that can be read: {error}") from None
    if layer.digest() != digest:
        raise StoreError(where, "the registry gave another content")
    expected.update(END)
    if records and f"sha256:{expected.hexdigest()}" != digest:
        raise InvalidInputError.one(where, "holds files of a model, not packed as publishing does")
    return records


def _below(entry: tarfile.TarInfo) -> str | None:
    """The name of what lies below ``models/``; None for a folder, and for what lies elsewhere."""
    path = posixpath.normpath(f"/{entry.name.lstrip('/')}")
    name = path.removeprefix(f"/{FOLDER}/")
    is_below = name != path or path in (f"/{FOLDER}", f"/.wh.{FOLDER}")
    return name if is_below and not entry.isdir() else None


def _hashing(content: IO[bytes], hashed: Any) -> Iterator[bytes]:
    while chunk := content.read(_CHUNK):
        hashed.update(chunk)
        yield chunk


class _Layer(io.RawIOBase):
    """A layer as a file to read once, which knows the digest of all of it."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")
        self._hashed = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts, wanted = [], size
        while wanted:
            if not self._rest and not self._next():
                break
            part = self._rest if wanted < 0 else self._rest[:wanted]
            self._rest = self._rest[len(part) :]
            parts.append(part)
            wanted -= len(part) if wanted > 0 else 0
        return b"".join(parts)

    def digest(self) -> str:
        """Of the whole, which is read to its end."""
        while self._next():
            pass
        return f"sha256:{self._hashed.hexdigest()}"

    def _next(self) -> bool:
        chunk = next(self._chunks, b"")
        self._hashed.update(chunk)
        self._rest = memoryview(chunk)
        return bool(chunk)
