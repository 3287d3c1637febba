"""What is in a store, and whether it is whole."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from quantlib.errors import InvalidInputError, StoreError
from quantlib.runtime.progress import Advance
from quantlib.store.base import Store, StoredFile
from quantlib.store.receipt import Receipt
from quantlib.store.transaction import USED_NAME

_RECEIPT = re.compile(r"steps/([^/]+)/([0-9a-f]{64})\.json")
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_UNFINISHED = re.compile(r"partial/([^/]+)/([0-9a-f]{64})/.*", re.DOTALL)
_PARALLEL_READS = 8


@dataclass(frozen=True)
class Step:
    """A committed step.

    Attributes:
        file: Its receipt, as listed.
        receipt: None where it is damaged: then the step counts as not done.
        used: When it was committed or last taken over by another run.
    """

    step: str
    key: str
    file: StoredFile
    receipt: Receipt | None
    used: datetime

    @property
    def bytes(self) -> int:
        """Of all files that it names together; other steps may name them too."""
        return sum(f.bytes for f in self.receipt.files.values()) if self.receipt else 0


@dataclass(frozen=True)
class Inventory:
    """What a store holds.

    Attributes:
        steps: The committed steps, the newest last.
        blobs: Contents, by path.
        unfinished: Files of steps that were not committed, by path.
        others: All other files, by path.
    """

    steps: tuple[Step, ...]
    blobs: dict[str, StoredFile]
    unfinished: dict[str, StoredFile]
    others: dict[str, StoredFile]


def take_inventory(store: Store) -> Inventory:
    """Lists a store and reads its receipts.

    Raises:
        StoreError: It cannot be read.
    """
    blobs, unfinished, others = {}, {}, {}
    receipts: list[StoredFile] = []
    for file in store.list():
        if _RECEIPT.fullmatch(file.path):
            receipts.append(file)
        elif _BLOB.fullmatch(file.path):
            blobs[file.path] = file
        elif _UNFINISHED.fullmatch(file.path):
            unfinished[file.path] = file
        else:
            others[file.path] = file

    def step(file: StoredFile) -> Step:
        found = _RECEIPT.fullmatch(file.path)
        assert found
        name, key = found.groups()
        used = others.get(f"runs/{name}/{key}/{USED_NAME}", file).modified
        return Step(name, key, file, _receipt(store, file.path), max(used, file.modified))

    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        steps = sorted(pool.map(step, receipts), key=lambda found: (found.used, found.key))
    return Inventory(tuple(steps), blobs, unfinished, others)


def verify_steps(store: Store, inventory: Inventory) -> Iterator[str]:
    """Compares receipts with what is listed: every file is there in its size.

    Yields:
        What is wrong, a line for each fault.
    """
    for step in inventory.steps:
        where = store.full_address(step.file.path)
        if step.receipt is None:
            yield f"{where}: is no valid receipt"
            continue
        if (step.receipt.step, step.receipt.key) != (step.step, step.key):
            yield f"{where}: is the receipt of another step"
        for name, record in step.receipt.files.items():
            blob = inventory.blobs.get(record.blob)
            if blob is None:
                yield f"{where}: {name}: {record.blob} is missing"
            elif blob.bytes != record.bytes:
                yield f"{where}: {name}: {record.blob} holds {blob.bytes} bytes, not {record.bytes}"


def verify_blob(store: Store, blob: StoredFile, advance: Advance) -> str | None:
    """Reads and hashes a blob.

    Args:
        store: Where it is.
        blob: As listed.
        advance: Called with the number of bytes that were read.

    Returns:
        What is wrong, as a line; None where it has the digest that it is named by.
    """
    hashed = hashlib.sha256()
    try:
        for chunk in store.stream(blob.path):
            hashed.update(chunk)
            advance(len(chunk))
    except StoreError as error:
        return str(error)
    if hashed.hexdigest() == blob.path.rpartition("/")[2]:
        return None
    return f"{store.full_address(blob.path)}: its sha256 is another, {hashed.hexdigest()}"


def _receipt(store: Store, path: str) -> Receipt | None:
    try:
        return Receipt.from_json(store.read(path), origin=path)
    except InvalidInputError:
        return None
