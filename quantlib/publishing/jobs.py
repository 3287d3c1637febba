"""Which published checkpoint a job led to: ``<destination>/jobs/<digest>.json``.

A job is one recipe on one release of a model by one version of the code; its digest is the
watcher's. The file is written after the checkpoint's manifest, so it never points to a folder that
is not published.
"""

from __future__ import annotations

from quantlib.errors import InvalidInputError, StoreError
from quantlib.foreign_json import parse_mapping
from quantlib.store import open_store
from quantlib.store.receipt import canonical_json

SCHEMA = "quantlib/job/1"


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
    """The published folder that a job led to, or None.

    Raises:
        StoreError: The destination cannot be read, or the entry is damaged.
    """
    store, path = open_store(destination), _path(job)
    if not store.exists(path):
        return None
    try:
        return str(parse_mapping(store.read(path), path)["address"])
    except (InvalidInputError, KeyError):
        raise StoreError(store.full_address(path), "is no entry of a job; remove it") from None


def _path(job: str) -> str:
    return f"jobs/{job.removeprefix('sha256:')}.json"
