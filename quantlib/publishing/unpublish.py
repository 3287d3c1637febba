"""Takes a published checkpoint back."""

from __future__ import annotations

from pathlib import Path

from quantlib.errors import InvalidInputError
from quantlib.publishing.jobs import forget_jobs
from quantlib.publishing.receipts import read_receipts
from quantlib.report.manifest import (
    DESCRIPTIONS,
    MANIFEST_NAME,
    RECEIPTS_NAME,
    SIGNATURE_NAME,
    parse_manifest,
)
from quantlib.store import LocalStore, Store, lease, open_store


def unpublish(published: Store) -> list[str]:
    """Removes a published folder, its manifest first, and what notes it as a job's result.

    What a killed call left is removed by the next. Files that are no part of the checkpoint stay,
    and so do the store's own files, which ``quantlib store gc`` looks after.

    Args:
        published: The folder ``<destination>/<name>/<digest>``, as a store.

    Returns:
        Addresses of the files that are no part of the checkpoint.

    Raises:
        InvalidInputError: The folder is no published one.
        StoreError: It could not be removed.
    """
    destination, name, _ = published.address.rsplit("/", 2)
    with lease(open_store(destination), f"publish/{name}"):
        found = {file.path for file in published.list()}
        ours = _files_of(published, found)
        # The receipts last: by them a later call knows the files of a folder without a manifest.
        for path in (MANIFEST_NAME, *sorted(ours - {RECEIPTS_NAME}), RECEIPTS_NAME):
            if path in found:
                published.delete(path)
        forget_jobs(destination, published.address)
    strangers = sorted(found - ours - {MANIFEST_NAME, RECEIPTS_NAME})
    if isinstance(published, LocalStore) and not strangers:
        _remove_empty(Path(published.address))
    return [published.full_address(path) for path in strangers]


def _files_of(published: Store, found: set[str]) -> set[str]:
    described = {*DESCRIPTIONS, SIGNATURE_NAME}
    if MANIFEST_NAME in found:
        where = published.full_address(MANIFEST_NAME)
        return described | set(parse_manifest(bytes(published.read(MANIFEST_NAME)), where).files)
    if RECEIPTS_NAME not in found:
        raise InvalidInputError.one(published.address, "is no published checkpoint")
    where = published.full_address(RECEIPTS_NAME)
    receipts = read_receipts(bytes(published.read(RECEIPTS_NAME)), where)
    return described | {name for receipt in receipts for name in receipt.files}


def _remove_empty(folder: Path) -> None:
    for each in (folder, folder.parent):
        if each.is_dir() and not any(each.iterdir()):
            each.rmdir()
