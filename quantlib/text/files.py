"""A file of text, wherever it lies, as a stream of bytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from quantlib.store import Receipt, Store

_RANGE_BYTES = 4 << 20


@dataclass(frozen=True)
class TextFile:
    """A file of text.

    Attributes:
        name: What messages call it; its suffix says what it holds.
        bytes: Its size.
        open: Opens it for reading; the stream can seek.
    """

    name: str
    bytes: int
    open: Callable[[], BinaryIO]


def local_file(path: Path, name: str | None = None) -> TextFile:
    """A file of this machine."""
    return TextFile(name or path.name, path.stat().st_size, lambda: path.open("rb"))


def stored_file(store: Store, receipt: Receipt, name: str) -> TextFile:
    """A file that a step wrote."""
    path, size = receipt.path(name), receipt.files[name].bytes

    def open_file() -> BinaryIO:
        return io.BufferedReader(_Ranges(store, path, size), _RANGE_BYTES)

    return TextFile(name, size, open_file)


class _Ranges(io.RawIOBase):
    """A file of a store, read by ranges."""

    def __init__(self, store: Store, path: str, size: int) -> None:
        self._store, self._path, self._size = store, path, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = min(len(buffer), max(0, self._size - self._position))
        if count:
            buffer[:count] = self._store.read(self._path, self._position, count)
            self._position += count
        return count
