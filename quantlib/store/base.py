"""The interface of a store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from quantlib.errors import StoreError
from quantlib.store.receipt import FileRecord


@dataclass(frozen=True)
class StoredFile:
    """A file as a listing shows it.

    Attributes:
        path: Relative to the store.
        bytes: Its size.
        modified: When it was written, with a time zone.
        version: Another one whenever the content is: an ETag, or the time to the nanosecond.
    """

    path: str
    bytes: int
    modified: datetime
    version: str


@dataclass(frozen=True)
class Leftover:
    """What a killed writer left behind, where no listing shows it.

    Attributes:
        description: What it is, for people.
        modified: When it was last known to be written.
        remove: Removes it.
    """

    description: str
    modified: datetime
    remove: Callable[[], None]


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
    def record(self, path: str) -> FileRecord:
        """Size and sha256 of a file, as far as the store itself vouches for them.

        A folder is read and hashed. Object storage is asked: it checked the bytes when it took
        them.

        Raises:
            StoreError: There is no such file.
        """

    @abstractmethod
    def holds(self, path: str, record: FileRecord) -> bool:
        """Whether a file is there and is what was recorded, as far as the store vouches for it.

        Raises:
            StoreError: The store cannot be asked.
        """

    @abstractmethod
    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytearray:
        """``length`` bytes from ``offset``; to the end of the file by default.

        Raises:
            StoreError: There is no such file, or it ends before the range does.
        """

    @abstractmethod
    def stream(self, path: str, chunk_bytes: int = 1 << 20) -> Iterator[bytes | bytearray]:
        """The file from start to end, in chunks.

        Raises:
            StoreError: There is no such file.
        """

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether a complete file is there."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[StoredFile]:
        """The files below the folder ``prefix``, in any order; all of them by default."""

    @abstractmethod
    def put_file(self, local: Path, path: str, sha256: str | None = None) -> None:
        """Moves a finished local file to ``path``. The local file is gone afterwards.

        Args:
            local: The file.
            path: Where it goes.
            sha256: Its hexadecimal digest, where it is known.

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
    def put_new(self, data: bytes, path: str) -> bool:
        """Writes ``data`` to ``path`` if nothing is there. Of several writers one succeeds.

        Returns:
            Whether ``path`` holds ``data`` now; False where another file was there first.

        Raises:
            StoreError: It could not be written.
        """

    @abstractmethod
    def put_stream(
        self, chunks: Iterable[bytes | bytearray], path: str, expected: FileRecord | None = None
    ) -> FileRecord:
        """Writes what comes in chunks, hashing it on the way.

        Args:
            chunks: The content.
            path: Where it goes.
            expected: What it has to be; nothing is written where it is something else.

        Returns:
            What was written.

        Raises:
            StoreError: It could not be written, or is not what was expected.
        """

    @abstractmethod
    def import_file(self, local: Path, path: str, sha256: str | None = None) -> None:
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

    @abstractmethod
    def leftovers(self) -> Iterator[Leftover]:
        """What killed writers left behind."""

    @property
    @abstractmethod
    def scratch(self) -> Path:
        """A local folder for files in the making, on the store's own file system if it has one."""

    def relative(self, path: str) -> PurePosixPath:
        """A path that does not leave the store.

        Raises:
            StoreError: It is absolute or leaves the store.
        """
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts:
            raise StoreError(self.full_address(path), "is not a relative path within the store")
        return pure

    def full_address(self, path: str) -> str:
        """The address of a file, for people and receipts."""
        return f"{self.address.rstrip('/')}/{path}"


def require_expected(where: str, written: FileRecord, expected: FileRecord | None) -> None:
    """Compares what was written with what should be.

    Raises:
        StoreError: It is something else.
    """
    if expected and (written.bytes, written.sha256) != (expected.bytes, expected.sha256):
        raise StoreError(where, "what the store gave is not what its receipt says")
