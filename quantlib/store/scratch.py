"""Local folders for files in the making, which do not outlive their step for long."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_LOCK_SUFFIX = ".lock"


class Scratch:
    """A scratch folder that is removed at the end, or by the next run of the step if killed.

    The owner holds a lock on a file beside it, which the kernel releases with the process: what
    nobody holds is a left-over. The file is made before the folder and removed after it, so that a
    process may be killed at any point.

    Args:
        parent: The folder to make it in.
        key: The step's key.
    """

    def __init__(self, parent: Path, key: str) -> None:
        self._parent = parent
        self._prefix = f"{key[:16]}-"

    def __enter__(self) -> Path:
        for lock in abandoned(self._parent, self._prefix):
            remove_abandoned(lock)
        while True:
            self._descriptor, name = tempfile.mkstemp(_LOCK_SUFFIX, self._prefix, self._parent)
            self._lock = Path(name)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            if self._lock.exists():
                break
            os.close(self._descriptor)  # another run took it for a left-over just before
        folder = self._lock.with_suffix("")
        folder.mkdir()
        return folder

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _remove(self._lock)
        os.close(self._descriptor)


def abandoned(parent: Path, prefix: str = "") -> Iterator[Path]:
    """Locks of scratch folders whose process is gone; one killed early may have made no folder.

    Args:
        parent: Where they are.
        prefix: What their names begin with.
    """
    for lock in parent.glob(f"{prefix}*{_LOCK_SUFFIX}"):
        descriptor = _take(lock)
        if descriptor is not None:
            os.close(descriptor)
            yield lock


def remove_abandoned(lock: Path) -> None:
    """Removes a scratch folder and its lock, unless somebody holds it."""
    descriptor = _take(lock)
    if descriptor is not None:
        _remove(lock)
        os.close(descriptor)


def _take(lock: Path) -> int | None:
    """A descriptor that holds the lock; None where somebody else does, or where it is gone."""
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(lock: Path) -> None:
    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    lock.unlink(missing_ok=True)
