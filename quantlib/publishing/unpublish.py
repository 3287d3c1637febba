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


def unpublish(address: str) -> tuple[str, list[str]]:
    """Takes a published checkpoint back, and what notes it as a job's result.

    Args:
        address: As :func:`quantlib.publishing.reading.open_published` takes it.

    Returns:
        What was removed, by what never means another one, and the addresses of files that lie
        there and are no part of it.

    Raises:
        InvalidInputError: It is no published checkpoint, or a commit, which stays in its history.
        StoreError: It could not be removed.
    """
    if address.startswith("oci://"):
        from quantlib.publishing.oci.removing import remove_image

        return remove_image(address), []
    if address.startswith("hf://"):
        repo = address.removeprefix("hf://").partition("@")[0]
        raise InvalidInputError.one(
            address,
            "a commit stays in the history of its repository",
            f"remove the repository on the hub (`hf repos delete {repo}`), or its tags job-… for "
            "`quantlib watch` to publish again",
        )
    published = open_store(address.rstrip("/"))
    return published.address, remove_folder(published)


def remove_folder(published: Store) -> list[str]:
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
