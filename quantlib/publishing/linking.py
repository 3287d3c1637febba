"""A folder of links in the place of one that names its files in the store around it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from quantlib.errors import InvalidInputError
from quantlib.report.manifest import MANIFEST_NAME, places_of, read_manifest
from quantlib.store import LocalStore


def linked_folder(folder: Path) -> Path | None:
    """A temporary folder that links all files of a checkpoint published within its store.

    Args:
        folder: A model's folder of any kind.

    Returns:
        The folder, named as the model is; None where the files lie in ``folder`` itself.

    Raises:
        InvalidInputError: The manifest is damaged, or a file is missing.
    """
    store = LocalStore(folder)
    if not store.exists(MANIFEST_NAME):
        return None
    manifest = read_manifest(store)
    if not manifest.by_reference:
        return None
    links = Path(tempfile.mkdtemp(prefix="quantlib-links-")) / manifest.name
    links.mkdir()
    for name, place in places_of(store, manifest).items():
        target = Path(place.address)
        if not target.is_file():
            raise InvalidInputError.one(place.address, "there is no such file", "publish it again")
        link = links / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    return links
