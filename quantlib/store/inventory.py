"""What is in a store, whether it is whole, and what nobody needs any more."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from quantlib.errors import InvalidInputError, StoreError
from quantlib.progress import Advance
from quantlib.store.base import Leftover, Store, StoredFile
from quantlib.store.receipt import FileRecord, Receipt, step_folder
from quantlib.store.transaction import RECEIPT_NAME, difference

UNFINISHED_FOR = timedelta(days=1)
"""Age at which files without a receipt are taken for those of a killed run."""

_ROOT_STEP = "publish"


@dataclass(frozen=True)
class StepFolder:
    """The files of one step.

    Attributes:
        files: All files in the folder, by name.
        modified: When the newest was written.
    """

    step: str
    key: str
    files: dict[str, StoredFile]
    modified: datetime

    @property
    def path(self) -> str:
        """The folder, relative to the store."""
        return step_folder(self.step, self.key)

    @property
    def committed(self) -> bool:
        """Whether it has a receipt."""
        return RECEIPT_NAME in self.files

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(file.bytes for file in self.files.values())


@dataclass(frozen=True)
class Inventory:
    """The steps in a store, the newest last."""

    folders: tuple[StepFolder, ...]


@dataclass(frozen=True)
class Garbage:
    """What may go: folders with the reason, and what killed writers left."""

    folders: tuple[tuple[StepFolder, str], ...]
    leftovers: tuple[Leftover, ...]


def take_inventory(store: Store) -> Inventory:
    """Lists a store; no file is read.

    Raises:
        StoreError: It cannot be listed.
    """
    found: dict[tuple[str, str], dict[str, StoredFile]] = {}
    for file in store.list("steps"):
        parts = file.path.split("/", 3)
        if len(parts) == 4:
            found.setdefault((parts[1], parts[2]), {})[parts[3]] = file
    folders = (
        StepFolder(step, key, files, max(file.modified for file in files.values()))
        for (step, key), files in found.items()
    )
    return Inventory(tuple(sorted(folders, key=lambda folder: (folder.modified, folder.key))))


def verify_folder(store: Store, folder: StepFolder, advance: Advance) -> Iterator[str]:
    """Reads and hashes the files of a committed step.

    Args:
        store: Where it is.
        folder: The step.
        advance: Called with the number of bytes that were read.

    Yields:
        What is wrong, a line for each fault.
    """
    try:
        receipt = _receipt(store, folder)
    except (InvalidInputError, StoreError) as error:
        yield str(error)
        return
    for name, record in receipt.files.items():
        path = receipt.path(name)
        hashed, size = hashlib.sha256(), 0
        try:
            for chunk in store.stream(path):
                hashed.update(chunk)
                size += len(chunk)
                advance(len(chunk))
        except StoreError as error:
            yield str(error)
            continue
        found = FileRecord(bytes=size, sha256=hashed.hexdigest())
        if what := difference(found, record, "receipt"):
            yield f"{store.full_address(path)}: {what}"


def find_garbage(store: Store, inventory: Inventory, keep: timedelta) -> Garbage:
    """What neither a published checkpoint nor a recent step rests on.

    Args:
        store: Where it is.
        inventory: What is there.
        keep: Age up to which steps are kept with all that they rest on.

    Raises:
        InvalidInputError: A receipt is damaged; nothing is known of what it rests on.
    """
    now = datetime.now(UTC)
    committed = {folder.path: folder for folder in inventory.folders if folder.committed}
    receipts = {path: _receipt(store, folder) for path, folder in committed.items()}
    needed: set[str] = set()
    waiting = [
        path
        for path, folder in committed.items()
        if folder.step == _ROOT_STEP or now - folder.modified <= keep
    ]
    while waiting:
        path = waiting.pop()
        if path in receipts and path not in needed:
            needed.add(path)
            inputs = receipts[path].inputs.values()
            waiting += [step_folder(reference.step, reference.key) for reference in inputs]
    folders = []
    for folder in inventory.folders:
        age = now - folder.modified
        if not folder.committed:
            if age > UNFINISHED_FOR:
                folders.append((folder, "was never finished"))
        elif folder.path not in needed:
            folders.append((folder, f"{age.days} days old, and nothing kept rests on it"))
    leftovers = tuple(left for left in store.leftovers() if now - left.modified > UNFINISHED_FOR)
    return Garbage(tuple(folders), leftovers)


def remove_folder(store: Store, folder: StepFolder) -> None:
    """Removes a step, its receipt first: what is half removed is not committed.

    Raises:
        StoreError: It could not be removed.
    """
    for name in sorted(folder.files, key=lambda name: name != RECEIPT_NAME):
        store.delete(f"{folder.path}/{name}")


def _receipt(store: Store, folder: StepFolder) -> Receipt:
    path = f"{folder.path}/{RECEIPT_NAME}"
    return Receipt.from_json(store.read(path), origin=store.full_address(path))
