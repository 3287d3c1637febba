"""Local folders for files in the making, which do not outlive their step for long."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO


class Scratch:
    """A scratch folder that is removed at the end, or by the next run of the step if killed.

    The owner holds a lock on it, which the kernel releases with the process: folders of the same
    step that nobody holds are left-overs.

    Args:
        parent: The folder to make it in.
        key: The step's key.
    """

    def __init__(self, parent: Path, key: str) -> None:
        self._parent = parent
        self._prefix = f"{key[:16]}-"
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Path:
        for folder in abandoned(self._parent, self._prefix):
            shutil.rmtree(folder, ignore_errors=True)
        self._folder = Path(tempfile.mkdtemp(prefix=self._prefix, dir=self._parent))
        self._lock = (self._folder / _LOCK_NAME).open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self._folder

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


_LOCK_NAME = "lock"


def abandoned(parent: Path, prefix: str = "") -> Iterator[Path]:
    """Scratch folders whose process is gone, each locked while it is the caller's to remove.

    Args:
        parent: Where they are.
        prefix: What their names begin with.
    """
    for folder in parent.glob(f"{prefix}*"):
        try:
            descriptor = os.open(folder / _LOCK_NAME, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            yield folder
        finally:
            os.close(descriptor)
