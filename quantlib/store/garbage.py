"""What nobody needs any more, found in one pass and removed in a later one.

Needed is what a recent step, a step in flight or a published checkpoint rests on. A first pass
names what is not needed; a second one, at least ``grace`` later, removes what it still finds
unneeded and unchanged. So a run that takes over a step or a blob in between keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from quantlib.errors import StoreError
from quantlib.store.base import Leftover, Store, StoredFile
from quantlib.store.condemned import condemn, condemned_lists
from quantlib.store.inventory import Inventory, Step, take_inventory
from quantlib.store.leases import FOLDER as LEASES
from quantlib.store.leases import holders
from quantlib.store.receipt import aside_folder, receipt_path

UNFINISHED_FOR = timedelta(days=1)
"""Age at which files that no receipt names are taken for those of a killed run."""

_UNFINISHED = ("partial/", "runs/", "steps/", f"{LEASES}/")
PUBLISHED = "published"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Keep:
    """What is kept.

    Attributes:
        steps: Age up to which steps are kept with all that they rest on.
        published: How many checkpoints of each model that are published in the store; None for all.
        grace: How long after it was named a file is removed at the earliest.
    """

    steps: timedelta
    published: int | None = None
    grace: timedelta = timedelta(days=1)


@dataclass(frozen=True)
class Garbage:
    """What may go.

    Attributes:
        files: With the reason, by path.
        removable: Those that were named long enough ago.
        lists: The lists that named them, which go with them.
        leftovers: What killed writers left.
    """

    files: dict[str, tuple[StoredFile, str]]
    removable: frozenset[str]
    lists: tuple[str, ...]
    leftovers: tuple[Leftover, ...]

    def bytes_of(self, paths: Iterable[str]) -> int:
        """How much files take."""
        return sum(self.files[path][0].bytes for path in paths)


def find_garbage(store: Store, keep: Keep) -> Garbage:
    """What nothing that is kept rests on; nothing is changed.

    Raises:
        StoreError: The store cannot be read, or a manifest in it is damaged: nothing is known of
            what that rests on.
    """
    now = datetime.now(UTC)
    inventory = take_inventory(store)
    found = dict(_unneeded(store, inventory, keep, now))
    old = {
        path: one for path, one in condemned_lists(store).items() if now - one.made >= keep.grace
    }
    removable = {
        path
        for one in old.values()
        for path, version in one.files.items()
        if path in found and found[path][0].version == version
    }
    if keep.grace <= timedelta(0):
        removable = set(found)
    leftovers = tuple(left for left in store.leftovers() if now - left.modified > UNFINISHED_FOR)
    return Garbage(found, frozenset(removable), tuple(old), leftovers)


def collect(store: Store, garbage: Garbage) -> None:
    """Removes what may go now, receipts first, and names the rest for a later pass.

    Raises:
        StoreError: The store cannot be written.
    """
    # What is half removed must not look committed.
    for path in sorted(garbage.removable, key=lambda path: not path.startswith("steps/")):
        store.delete(path)
    for path in garbage.lists:
        store.delete(path)
    for leftover in garbage.leftovers:
        leftover.remove()
    named = {path for one in condemned_lists(store).values() for path in one.files}
    rest = {
        path: file.version
        for path, (file, _) in garbage.files.items()
        if path not in garbage.removable and path not in named
    }
    if rest:
        condemn(store, rest)


def _unneeded(
    store: Store, inventory: Inventory, keep: Keep, now: datetime
) -> Iterator[tuple[str, tuple[StoredFile, str]]]:
    steps = {step.file.path: step for step in inventory.steps}
    needed = _needed_steps(store, steps, keep, now)
    kept = _blobs_of(steps[path] for path in needed)
    dropped = _superseded(inventory, keep)
    for path in inventory.others:
        if _is_manifest(path) and path not in dropped:
            kept |= _blobs_of_manifest(store, path)
    for path, step in steps.items():
        if path not in needed:
            age = f"{(now - step.used).days} days old"
            yield path, (step.file, f"{age}, and nothing kept rests on it")
    named = _blobs_of(steps.values())
    for path, file in inventory.blobs.items():
        if path not in kept and (path in named or _is_old(file, now)):
            yield path, (file, "no step that is kept names it")
    asides = {aside_folder(step.step, step.key): path for path, step in steps.items()}
    for path, file in (inventory.unfinished | inventory.others).items():
        folder = path.rpartition("/")[0]
        if path in dropped:
            yield path, (file, f"{keep.published} newer ones of the model are published")
        elif folder in asides:
            if asides[folder] not in needed:
                yield path, (file, "its step is gone")
        elif path.startswith(_UNFINISHED) and _is_old(file, now):
            yield path, (file, "was never finished")


def _is_old(file: StoredFile, now: datetime) -> bool:
    return now - file.modified > UNFINISHED_FOR


def _blobs_of(steps: Iterable[Step]) -> set[str]:
    receipts = (step.receipt for step in steps if step.receipt is not None)
    return {record.blob for receipt in receipts for record in receipt.files.values()}


def _needed_steps(
    store: Store, steps: dict[str, Step], keep: Keep, now: datetime
) -> frozenset[str]:
    waiting = [path for path, step in steps.items() if now - step.used <= keep.steps]
    waiting += [use.receipt_path for holder in holders(store) for use in holder.uses]
    needed: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in needed or path not in steps:
            continue
        needed.add(path)
        if (receipt := steps[path].receipt) is not None:
            waiting += [receipt_path(read.step, read.key) for read in receipt.inputs.values()]
    return frozenset(needed)


def _is_manifest(path: str) -> bool:
    return path.startswith(f"{PUBLISHED}/") and path.endswith(f"/{MANIFEST}")


def _superseded(inventory: Inventory, keep: Keep) -> frozenset[str]:
    """Files of checkpoints published in the store that newer ones of the same model push out."""
    if keep.published is None:
        return frozenset()
    by_model: dict[str, list[StoredFile]] = {}
    for path, file in inventory.others.items():
        if _is_manifest(path):
            by_model.setdefault(path.split("/")[1], []).append(file)
    folders = tuple(
        f"{file.path.removesuffix(MANIFEST)}"
        for files in by_model.values()
        for file in sorted(files, key=lambda file: file.modified)[: -keep.published or None]
    )
    return frozenset(path for path in inventory.others if folders and path.startswith(folders))


def _blobs_of_manifest(store: Store, path: str) -> set[str]:
    try:
        files: dict[str, Any] = json.loads(bytes(store.read(path)))["files"]
        return {f"blobs/sha256/{record['sha256']}" for record in files.values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StoreError(
            store.full_address(path), "is no valid manifest; nothing is known of what it needs"
        ) from None
