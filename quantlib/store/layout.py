"""Which layout a store has: this code writes one, and touches no other."""

from __future__ import annotations

import json
import re

from quantlib.errors import InvalidInputError
from quantlib.store.base import Store
from quantlib.store.receipt import canonical_json

NAME = "layout.json"
SCHEMA = "quantlib/store/2"
_OLD_RECEIPT = re.compile(r"steps/[^/]+/[0-9a-f]{64}/receipt\.json")


def require_layout(store: Store) -> None:
    """Marks a new store with its layout, and refuses a store of another one.

    Raises:
        InvalidInputError: The store was written by an older or a newer version.
        StoreError: It cannot be read or written.
    """
    if store.exists(NAME):
        schema = _schema(bytes(store.read(NAME)))
        if schema != SCHEMA:
            raise InvalidInputError.one(
                f"store {store.address}",
                f"has the layout {schema}, and this version writes {SCHEMA}",
                "use the version that wrote it, or another folder",
            )
        return
    if any(_OLD_RECEIPT.fullmatch(file.path) for file in store.list("steps")):
        raise InvalidInputError.one(
            f"store {store.address}",
            "was written by quantlib 0.1, which kept files by step; they are kept by content now, "
            "and nothing of it would be found",
            "give another folder or prefix; what is published from it stays as it is",
        )
    store.put_new(canonical_json({"schema": SCHEMA}), NAME)


def _schema(data: bytes) -> str:
    try:
        return str(json.loads(data)["schema"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "unknown"
