"""Where a checkpoint's bytes come from: a folder, a store, or the files of a step in a store."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from quantlib.store import LocalStore, Receipt, Store


class FileSource(Protocol):
    """Named files that can be read by range.

    Errors of the methods are :class:`quantlib.errors.StoreError`.
    """

    def names(self) -> tuple[str, ...]:
        """The files that there are, sorted."""

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytearray:
        """``length`` bytes from ``offset``; to the end by default."""

    def describe(self, name: str) -> str:
        """The file's address, for messages."""


class FolderSource:
    """The files of a local folder, without its subfolders."""

    def __init__(self, folder: Path | str) -> None:
        self._store = LocalStore(folder)

    def names(self) -> tuple[str, ...]:
        root = self._store.root
        return tuple(sorted(file.name for file in root.iterdir() if file.is_file()))

    def size(self, name: str) -> int:
        return self._store.size(name)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytearray:
        return self._store.read(name, offset, length)

    def describe(self, name: str) -> str:
        return self._store.full_address(name)


class StoreSource:
    """The files in the root of a store, without its folders."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.files = {file.path: file for file in store.list() if "/" not in file.path}

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.files))

    def size(self, name: str) -> int:
        return self.files[name].bytes

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytearray:
        return self._store.read(name, offset, length)

    def describe(self, name: str) -> str:
        return self._store.full_address(name)


class ReceiptSource:
    """The files that a step wrote."""

    def __init__(self, store: Store, receipt: Receipt) -> None:
        self._store = store
        self._receipt = receipt

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._receipt.files))

    def size(self, name: str) -> int:
        return self._receipt.files[name].bytes

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytearray:
        return self._store.read(self._receipt.path(name), offset, length)

    def describe(self, name: str) -> str:
        return f"{self._store.full_address(self._receipt.address)}: {name}"
