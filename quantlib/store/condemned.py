"""What gc will remove: named in one pass, removed in a later one if nobody took it since.

A list, ``gc/<time>.json``, names files with the version that each had. Whoever needs a blob that a
list names writes it again, which makes it another version; gc leaves that alone.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from quantlib.errors import StoreError
from quantlib.store.base import Store

FOLDER = "gc"


class Condemned(BaseModel):
    """One list.

    Attributes:
        made: When.
        files: The version of each file then, by path.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    made: datetime
    files: dict[str, str]


def condemn(store: Store, files: dict[str, str]) -> None:
    """Writes a list.

    Raises:
        StoreError: It could not be written.
    """
    made = datetime.now(UTC)
    path = f"{FOLDER}/{made:%Y%m%dT%H%M%S.%f}.json"
    store.put_new(Condemned(made=made, files=files).model_dump_json().encode(), path)


def condemned_lists(store: Store) -> dict[str, Condemned]:
    """The lists in a store, by path; damaged ones name nothing.

    Raises:
        StoreError: The store cannot be read.
    """
    lists = {}
    for file in store.list(FOLDER):
        content = bytes(store.read(file.path))
        try:
            lists[file.path] = Condemned.model_validate_json(content)
        except ValidationError:
            lists[file.path] = Condemned(made=file.modified, files={})
    return lists


def condemned_files(store: Store) -> frozenset[str]:
    """The paths that the lists name."""
    with suppress(StoreError):
        return frozenset(path for one in condemned_lists(store).values() for path in one.files)
    return frozenset()
