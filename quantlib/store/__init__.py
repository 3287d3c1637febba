"""Where the bulk of every step lives: one interface over a folder (and object storage later)."""

from quantlib.store.base import Store
from quantlib.store.local import LocalStore
from quantlib.store.receipt import FileRecord, Receipt
from quantlib.store.transaction import StepOutput, commit_step, read_lineage, run_facts

__all__ = [
    "FileRecord",
    "LocalStore",
    "Receipt",
    "StepOutput",
    "Store",
    "commit_step",
    "open_store",
    "read_lineage",
    "run_facts",
]


def open_store(address: str) -> Store:
    """The store at ``address``.

    Args:
        address: A folder, as a path or a ``file://`` URL.

    Raises:
        InvalidInputError: The scheme of the address is not supported.
    """
    from quantlib.errors import InvalidInputError

    if "://" in address and not address.startswith("file://"):
        raise InvalidInputError.one(
            f"store {address}", "unsupported kind of store", "give a folder or a file:// address"
        )
    return LocalStore(address.removeprefix("file://"))
