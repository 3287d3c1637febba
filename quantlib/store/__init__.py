"""Where the bulk of every step lives: one interface over a folder and object storage."""

from quantlib.store.base import Store, StoredFile
from quantlib.store.leases import lease
from quantlib.store.local import LocalStore
from quantlib.store.materialize import materialize
from quantlib.store.receipt import FileRecord, Receipt
from quantlib.store.transaction import StepOutput, commit_step, read_lineage, run_facts
from quantlib.store.transfer import transfer

__all__ = [
    "FileRecord",
    "LocalStore",
    "Receipt",
    "StepOutput",
    "Store",
    "StoredFile",
    "commit_step",
    "lease",
    "materialize",
    "open_store",
    "read_lineage",
    "run_facts",
    "transfer",
]


def open_store(address: str) -> Store:
    """The store at ``address``; nothing is asked of it yet.

    Args:
        address: A folder, as a path or a ``file://`` URL, or ``s3://bucket/prefix``.

    Raises:
        InvalidInputError: The address is of a kind that is not supported, or boto3 is missing.
    """
    from quantlib.errors import InvalidInputError
    from quantlib.runtime.distribution import pip_install

    if address.startswith("s3://"):
        try:
            from quantlib.store.s3 import S3Store
        except ModuleNotFoundError as error:
            if error.name not in ("boto3", "botocore"):
                raise
            raise InvalidInputError.one(
                "object storage", "boto3 is not installed", pip_install("s3")
            ) from None
        return S3Store(address)
    if "://" in address and not address.startswith("file://"):
        raise InvalidInputError.one(
            f"store {address}", "unsupported kind of store", "give a folder or s3://bucket/prefix"
        )
    return LocalStore(address.removeprefix("file://"))
