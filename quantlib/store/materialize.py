"""Files of a store as files of this machine."""

from __future__ import annotations

from pathlib import Path

from quantlib.store.base import Store
from quantlib.store.local import LocalStore


def materialize(store: Store, path: str, local: Path) -> None:
    """Puts a file where a program reads it: a link to a store in a folder, else a copy.

    Args:
        store: That holds the file.
        path: Of the file in it.
        local: Where it is wanted; the folder is made.
    """
    local.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(store, LocalStore):
        local.symlink_to(store.local_path(path))
    else:
        store.export_file(path, local)
