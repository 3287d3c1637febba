"""Room on a disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from quantlib.errors import InvalidInputError


def existing_ancestor(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if os.path.exists(place))


def require_space(folder: Path, wanted: int, purpose: str, remedy: str) -> None:
    """Requires that a folder's disk has room.

    Args:
        folder: Need not exist yet.
        wanted: Bytes.
        purpose: What is done with them: ``are to be downloaded``.
        remedy: What to do where there is none.

    Raises:
        InvalidInputError: There is less.
    """
    existing = existing_ancestor(folder.absolute())
    free = shutil.disk_usage(existing).free
    if wanted > free:
        gib = 1 << 30
        raise InvalidInputError.one(
            str(existing),
            f"has {free / gib:.1f} GiB free, and {wanted / gib:.1f} GiB {purpose}",
            remedy,
        )
