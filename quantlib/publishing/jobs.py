"""Which published checkpoint a job led to: ``<destination>/jobs/<digest>.json``.

A job is one recipe on one release of a model by one version of the code; its digest is the
watcher's. The file is written after the checkpoint's manifest, so it never points to a folder that
is not published.
"""

from __future__ import annotations

from contextlib import suppress

from quantlib.errors import InvalidInputError, StoreError
from quantlib.report.manifest import MANIFEST_NAME
from quantlib.runtime.foreign_json import parse_mapping
from quantlib.store import Store, open_store
from quantlib.store.receipt import canonical_json

SCHEMA = "quantlib/job/1"
_FOLDER = "jobs"


def enter_job(destination: str, job: str, address: str, checkpoint: str) -> None:
    """Notes what a job led to.

    Args:
        destination: Where checkpoints are published.
        job: Digest of the job.
        address: The published folder.
        checkpoint: Digest of the checkpoint.

    Raises:
        StoreError: It could not be written.
    """
    entry = {"schema": SCHEMA, "job": job, "address": address, "checkpoint": checkpoint}
    open_store(destination).put_bytes(canonical_json(entry), _path(job))


def published_of(destination: str, job: str) -> str | None:
    """The published folder that a job led to; None where there is none, or it is gone.

    Raises:
        StoreError: The destination cannot be read, or the entry is damaged.
    """
    store, path = open_store(destination), _path(job)
    if not store.exists(path):
        return None
    address = _address(store, path)
    return address if open_store(address).exists(MANIFEST_NAME) else None


def forget_jobs(destination: str, address: str) -> None:
    """Removes the entries of all jobs that led to a published folder.

    Raises:
        StoreError: The destination cannot be read or written.
    """
    store = open_store(destination)
    for file in list(store.list(_FOLDER)):
        with suppress(StoreError):  # damaged, or removed meanwhile
            if _address(store, file.path) == address:
                store.delete(file.path)


def _address(store: Store, path: str) -> str:
    try:
        return str(parse_mapping(store.read(path), path)["address"])
    except (InvalidInputError, KeyError):
        raise StoreError(store.full_address(path), "is no entry of a job; remove it") from None


def _path(job: str) -> str:
    return f"{_FOLDER}/{job.removeprefix('sha256:')}.json"
