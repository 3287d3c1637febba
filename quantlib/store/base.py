"""The interface of a store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path


class Store(ABC):
    """Files by relative path: ranged reads, whole-file atomic writes.

    A file becomes visible complete or not at all. Paths are relative, use ``/`` and never leave the
    store.

    Attributes:
        address: Where the store is, as :func:`quantlib.store.open_store` takes it.
    """

    address: str

    @abstractmethod
    def size(self, path: str) -> int:
        """Bytes of a file.

        Raises:
            StoreError: There is no such file.
        """

    @abstractmethod
    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytearray:
        """``length`` bytes from ``offset``; to the end of the file by default.

        Raises:
            StoreError: There is no such file, or it ends before the range does.
        """

    @abstractmethod
    def stream(self, path: str, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        """The file from start to end, in chunks.

        Raises:
            StoreError: There is no such file.
        """

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether a complete file is there."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[str]:
        """Paths of the files below the folder ``prefix``, sorted."""

    @abstractmethod
    def put_file(self, local: Path, path: str) -> None:
        """Moves a finished local file to ``path``. The local file is gone afterwards.

        Raises:
            StoreError: It could not be written.
        """

    @abstractmethod
    def put_bytes(self, data: bytes, path: str) -> None:
        """Writes ``data`` to ``path`` atomically.

        Raises:
            StoreError: It could not be written.
        """

    @abstractmethod
    def copy(self, source: str, path: str) -> None:
        """Copies a file within the store, without moving its bytes through this process.

        Raises:
            StoreError: There is no such file, or it could not be written.
        """

    @abstractmethod
    def import_file(self, local: Path, path: str) -> None:
        """Takes over a local file that stays where it is.

        Raises:
            StoreError: It could not be written.
        """

    @abstractmethod
    def export_file(self, path: str, local: Path) -> None:
        """Materializes a file of the store as the local file ``local``.

        Raises:
            StoreError: There is no such file, or it could not be written.
        """

    @abstractmethod
    def delete(self, path: str) -> None:
        """Removes a file; nothing happens where there is none."""

    @property
    @abstractmethod
    def scratch(self) -> Path:
        """A local folder for files in the making, on the store's own file system if it has one."""

    def full_address(self, path: str) -> str:
        """The address of a file, for people and receipts."""
        return f"{self.address.rstrip('/')}/{path}"
