"""A store in a folder."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from quantlib.errors import StoreError
from quantlib.store.base import Store


class LocalStore(Store):
    """Files below one folder.

    Copies of safetensors files are hard links where the file system allows it: a store never
    changes a file in place, and what another program changes no longer verifies. Small files, which
    people do edit, are always copied.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()
        self.address = str(self.root)

    def local_path(self, path: str) -> Path:
        """Where a file of the store lies.

        Raises:
            StoreError: The path is absolute or leaves the store.
        """
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts:
            raise StoreError(self.full_address(path), "is not a relative path within the store")
        return self.root.joinpath(*pure.parts)

    def size(self, path: str) -> int:
        try:
            return self.local_path(path).stat().st_size
        except OSError as error:
            raise self._error(path, error) from None

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
                return data
        except OSError as error:
            raise self._error(path, error) from None

    def stream(self, path: str, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        try:
            with self.local_path(path).open("rb", buffering=0) as file:
                while chunk := file.read(chunk_bytes):
                    yield chunk
        except OSError as error:
            raise self._error(path, error) from None

    def exists(self, path: str) -> bool:
        return self.local_path(path).is_file()

    def list(self, prefix: str) -> Iterator[str]:
        folder = self.local_path(prefix)
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                yield file.relative_to(self.root).as_posix()

    def put_file(self, local: Path, path: str) -> None:
        target = self._parent_made(path)
        try:
            with local.open("rb") as file:
                os.fsync(file.fileno())
            try:
                local.replace(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                _take_over(local, target)
                local.unlink()
        except OSError as error:
            raise self._error(path, error) from None

    def put_bytes(self, data: bytes, path: str) -> None:
        descriptor, name = tempfile.mkstemp(dir=self.scratch)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            self.put_file(Path(name), path)
        except OSError as error:
            raise self._error(path, error) from None
        finally:
            Path(name).unlink(missing_ok=True)

    def copy(self, source: str, path: str) -> None:
        if not self.exists(source):
            raise StoreError(self.full_address(source), "there is no such file")
        self.import_file(self.local_path(source), path)

    def import_file(self, local: Path, path: str) -> None:
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
        self.local_path(path).unlink(missing_ok=True)

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


def _take_over(source: Path, target: Path) -> None:
    """Puts a link to ``source``, or a copy of it, in the place of ``target``."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        if target.suffix != ".safetensors" or not _link(source, partial):
            shutil.copyfile(source, partial)
        partial.replace(target)
    finally:
        # Renaming onto another link to the same file does nothing and keeps both names.
        partial.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            return False
        raise
    return True
