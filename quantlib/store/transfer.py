"""Copies a file from one store to another, by the shortest way."""

from __future__ import annotations

from quantlib.store.base import Store
from quantlib.store.receipt import FileRecord


def transfer(source: Store, path: str, target: Store, name: str, record: FileRecord) -> None:
    """Copies a file between stores; within one S3 server its bytes do not come here.

    Args:
        source: Where the file is.
        path: Its path there.
        target: Where it goes.
        name: Its path there.
        record: What it has to be.

    Raises:
        StoreError: It could not be copied, or is not what was recorded.
    """
    if source.address.startswith("s3://") and target.address.startswith("s3://"):
        from quantlib.store.s3 import S3Store

        assert isinstance(source, S3Store) and isinstance(target, S3Store)
        if target.can_copy_from(source):
            target.copy_from(source, path, name, record)
            return
    target.put_stream(source.stream(path), name, record)
