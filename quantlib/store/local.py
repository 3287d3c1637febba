"""A store in a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from quantlib.errors import StoreError
from quantlib.runtime.usage import usage
from quantlib.store.base import Leftover, Store, StoredFile, require_expected
from quantlib.store.receipt import FileRecord
from quantlib.store.scratch import abandoned, remove_abandoned


class LocalStore(Store):
    """Files below one folder.

    What is imported or exported as safetensors is a hard link where the file system allows it: a
    store never changes a file in place, and what another program changes no longer verifies. Small
    files, which people do edit, are always copied.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()
        self.address = str(self.root)

    def local_path(self, path: str) -> Path:
        """Where a file of the store lies.

        Raises:
            StoreError: The path is absolute or leaves the store.
        """
        return self.root.joinpath(*self.relative(path).parts)

    def size(self, path: str) -> int:
        try:
            return self.local_path(path).stat().st_size
        except OSError as error:
            raise self._error(path, error) from None

    def record(self, path: str) -> FileRecord:
        try:
            with self.local_path(path).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                return FileRecord(bytes=os.fstat(file.fileno()).st_size, sha256=digest)
        except OSError as error:
            raise self._error(path, error) from None

    def holds(self, path: str, record: FileRecord) -> bool:
        try:
            size = self.local_path(path).stat().st_size
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._error(path, error) from None
        return size == record.bytes and self.record(path).sha256 == record.sha256

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytearray:
        try:
            with self.local_path(path).open("rb", buffering=0) as file:
                if length is None:
                    length = max(os.fstat(file.fileno()).st_size - offset, 0)
                file.seek(offset)
                data = bytearray(length)
                view = memoryview(data)
                filled = 0
                while filled < length:
                    count = file.readinto(view[filled:])
                    if not count:
                        raise StoreError(
                            self.full_address(path),
                            f"ends {length - filled} bytes before the range {offset}+{length}",
                        )
                    filled += count
                usage.read(length)
                return data
        except OSError as error:
            raise self._error(path, error) from None

    def stream(self, path: str, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        try:
            with self.local_path(path).open("rb", buffering=0) as file:
                while chunk := file.read(chunk_bytes):
                    usage.read(len(chunk))
                    yield chunk
        except OSError as error:
            raise self._error(path, error) from None

    def exists(self, path: str) -> bool:
        return self.local_path(path).is_file()

    def list(self, prefix: str = "") -> Iterator[StoredFile]:
        folder = self.local_path(prefix) if prefix else self.root
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                path, status = file.relative_to(self.root).as_posix(), file.stat()
                modified = datetime.fromtimestamp(status.st_mtime, UTC)
                yield StoredFile(path, status.st_size, modified, str(status.st_mtime_ns))

    def put_file(self, local: Path, path: str, sha256: str | None = None) -> None:
        target = self._parent_made(path)
        try:
            _flush(local)
            try:
                local.replace(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                _take_over(local, target)
                _flush(target)
                local.unlink()
            _flush(target.parent)
            usage.written(target.stat().st_size)
        except OSError as error:
            raise self._error(path, error) from None

    def put_bytes(self, data: bytes, path: str) -> None:
        self.put_stream([data], path)

    def put_new(self, data: bytes, path: str) -> bool:
        target = self._parent_made(path)
        partial_file = _beside(target)
        try:
            partial_file.write_bytes(data)
            _flush(partial_file)  # its content is on the disk before its name is
            try:
                os.link(partial_file, target)
            except FileExistsError:
                return target.read_bytes() == data
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if not self._rename_new(partial_file, target):
                    return target.read_bytes() == data
            _flush(target.parent)
            return True
        except OSError as error:
            raise self._error(path, error) from None
        finally:
            partial_file.unlink(missing_ok=True)

    def _rename_new(self, partial_file: Path, target: Path) -> bool:
        """Gives a file its name unless that is taken, where there are no hard links."""
        with (self.scratch / "rename.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if target.exists():
                return False
            partial_file.rename(target)
            return True

    def put_stream(
        self, chunks: Iterable[bytes | bytearray], path: str, expected: FileRecord | None = None
    ) -> FileRecord:
        target = self._parent_made(path)
        partial_file = _beside(target)
        digest, size = hashlib.sha256(), 0
        try:
            with partial_file.open("wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    size += file.write(chunk)
            written = FileRecord(bytes=size, sha256=digest.hexdigest())
            require_expected(self.full_address(path), written, expected)
            self.put_file(partial_file, path)
            return written
        except OSError as error:
            raise self._error(path, error) from None
        finally:
            partial_file.unlink(missing_ok=True)

    def import_file(self, local: Path, path: str, sha256: str | None = None) -> None:
        try:
            _take_over(local, self._parent_made(path))
        except OSError as error:
            raise self._error(path, error) from None

    def export_file(self, path: str, local: Path) -> None:
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            _take_over(self.local_path(path), local)
        except OSError as error:
            raise self._error(path, error) from None

    def delete(self, path: str) -> None:
        local = self.local_path(path)
        local.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            local.parent.rmdir()

    def leftovers(self) -> Iterator[Leftover]:
        """Scratch folders whose process is gone."""
        for lock in abandoned(self.root / "tmp"):
            modified = datetime.fromtimestamp(lock.stat().st_mtime, UTC)
            remove = partial(remove_abandoned, lock)
            yield Leftover(f"scratch folder {lock.stem}", modified, remove)

    @property
    def scratch(self) -> Path:
        folder = self.root / "tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(str(folder), f"cannot be created: {error.strerror}") from None
        return folder

    def _parent_made(self, path: str) -> Path:
        target = self.local_path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._error(path, error) from None
        return target

    def _error(self, path: str, error: OSError) -> StoreError:
        if isinstance(error, FileNotFoundError):
            return StoreError(self.full_address(path), "there is no such file")
        return StoreError(self.full_address(path), error.strerror or str(error))


_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)
"""How a file system says that it makes no hard link."""


def _beside(target: Path) -> Path:
    """Where a file is made before it takes its place."""
    return target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}")


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has nothing to wait for
            raise
    finally:
        os.close(descriptor)


def _take_over(source: Path, target: Path) -> None:
    """Puts a link to ``source``, or a copy of it, in the place of ``target``."""
    partial_file = _beside(target)
    partial_file.unlink(missing_ok=True)
    try:
        weights = ".safetensors" in (source.suffix, target.suffix)
        if not (weights and _link(source, partial_file)):
            shutil.copyfile(source, partial_file)
        partial_file.replace(target)
    finally:
        # Renaming onto another link to the same file does nothing and keeps both names.
        partial_file.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    return True
