"""A folder that vLLM can read, in the place of a published checkpoint that is none as it is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantlib.errors import InvalidInputError
from quantlib.publishing.published import manifest_of
from quantlib.publishing.reading import open_published
from quantlib.publishing.verification import Policy, verify_for_promotion
from quantlib.report.manifest import MANIFEST_NAME, places_of, read_manifest
from quantlib.runtime.progress import progress_bar
from quantlib.store import LocalStore


@contextmanager
def brought_folder(address: str) -> Iterator[Path]:
    """A folder with a checkpoint that is published elsewhere, verified, and removed at the end.

    Args:
        address: Such as ``s3://…``, ``oci://…`` or ``hf://…``.

    Yields:
        The folder, named as the model is.

    Raises:
        QuantlibError: It cannot be read, or is not what it says of itself.
    """
    published = open_published(address)
    manifest = manifest_of(published)
    total = sum(record.bytes for record in manifest.files.values())
    folder = Path(tempfile.mkdtemp(prefix="quantlib-brought-"))
    try:
        target = folder / manifest.name
        with progress_bar("Bringing", total, "bytes") as advance:
            verify_for_promotion(published, Policy(), advance, LocalStore(target))
        yield target
    finally:
        shutil.rmtree(folder)


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
