"""A step's work as a transaction: all of its files and then its receipt, or nothing."""

from __future__ import annotations

import hashlib
import json
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantlib import __version__
from quantlib.errors import StoreError
from quantlib.store.base import Store
from quantlib.store.receipt import FileRecord, Receipt, step_folder, step_key
from quantlib.store.scratch import Scratch

RECEIPT_NAME = "receipt.json"
RUN_NAME = "run.json"
"""Seconds, peak memory and remarks of the run that committed a step; no part of the receipt."""

USED_NAME = "used"
"""An empty file that is written whenever another run takes the step over: the step is in use."""


@dataclass
class StepOutput:
    """Where a step's work writes its files.

    Attributes:
        store: The store that the files go to.
        scratch: A local folder for files in the making; removed when the step ends.
        facts: Small results that go into the receipt.
        remarks: Sentences on this run, which depend on the machine and stay out of the receipt.
    """

    store: Store
    folder: str
    scratch: Path
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def local(self, name: str) -> Path:
        """A path in the scratch folder to write the file ``name`` at, before :meth:`add`."""
        path = self.scratch / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, name: str, *, sha256: str | None = None, tensors: int | None = None) -> None:
        """Moves the finished file at :meth:`local` to the store.

        Args:
            name: Path of the file within the step's folder.
            sha256: Its digest, where writing it gave one already.
            tensors: How many tensors it holds, if it holds tensors.
        """
        path = self.local(name)
        size = path.stat().st_size
        digest = sha256 or hash_file(path)
        self.store.put_file(path, f"{self.folder}/{name}", digest)
        self.files[name] = FileRecord(bytes=size, sha256=digest, tensors=tensors)

    def add_bytes(self, name: str, data: bytes) -> None:
        """Writes a small file."""
        self.store.put_bytes(data, f"{self.folder}/{name}")
        self.files[name] = FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def add_json(self, name: str, value: Any) -> None:
        """Writes a small JSON file."""
        self.add_bytes(name, json.dumps(value, indent=1, sort_keys=True).encode())

    def add_local_file(self, name: str, source: Path, record: FileRecord) -> None:
        """Takes over a local file that stays where it is, and whose digest is known."""
        self.store.import_file(source, f"{self.folder}/{name}", record.sha256)
        self.files[name] = record

    def add_copy(self, name: str, receipt: Receipt, source: str) -> None:
        """Copies a file of another step, within the store."""
        self.store.copy(receipt.path(source), f"{self.folder}/{name}")
        self.files[name] = receipt.files[source]


def hash_file(path: Path) -> str:
    """The hexadecimal sha256 of a local file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_committed(store: Store, folder: str) -> Receipt | None:
    """The receipt of a committed step whose files are all as it says, else None."""
    path = f"{folder}/{RECEIPT_NAME}"
    if not store.exists(path):
        return None
    receipt = Receipt.from_json(store.read(path), origin=store.full_address(path))
    try:
        verify_files(store, receipt)
    except StoreError:
        return None
    return receipt


def verify_files(store: Store, receipt: Receipt) -> None:
    """Compares every file of a receipt with what the store vouches for.

    Raises:
        StoreError: A file is missing or is not what the receipt says.
    """
    for name, record in receipt.files.items():
        path = receipt.path(name)
        if what := difference(store.record(path), record, "receipt"):
            raise StoreError(store.full_address(path), what)


def difference(found: FileRecord, expected: FileRecord, recorder: str) -> str | None:
    """How a file differs from what was recorded of it, in words; None where it does not.

    Args:
        found: What the store vouches for.
        expected: What was recorded.
        recorder: What recorded it: ``receipt`` or ``manifest``.
    """
    if found.bytes != expected.bytes:
        return f"holds {found.bytes} bytes, not {expected.bytes}"
    return None if found.sha256 == expected.sha256 else f"its sha256 is not the {recorder}'s"


def commit_step(
    store: Store,
    step: str,
    version: int,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, Receipt],
    work: Callable[[StepOutput], None],
) -> Receipt:
    """Runs a step's work once.

    A step that is committed already, with files that still verify, is not run again. Otherwise
    ``work`` writes files, and the receipt that commits them is written last. Whatever is killed on
    the way leaves no receipt, so the next call starts the step afresh. Of several runs of the same
    step at once, one commits and the others return its receipt.

    Args:
        store: Where the step's files go.
        step: Name of the step.
        version: Version of the step's meaning.
        parameters: JSON values that decide the result.
        inputs: Receipts that decide the result, by name.
        work: Writes the step's files and facts.

    Returns:
        The step's receipt.

    Raises:
        StoreError: Another run committed the step meanwhile, with another result.
    """
    references = {name: receipt.reference() for name, receipt in inputs.items()}
    digests = {name: reference.digest for name, reference in references.items()}
    key = step_key(step, version, parameters, digests)
    folder = step_folder(step, key)
    if (done := read_committed(store, folder)) is not None:
        store.put_bytes(b"", f"{folder}/{USED_NAME}")
        return done
    store.delete(f"{folder}/{RECEIPT_NAME}")  # of files that are damaged
    started = time.monotonic()
    with Scratch(store.scratch, key) as scratch:
        output = StepOutput(store=store, folder=folder, scratch=scratch)
        work(output)
    receipt = Receipt(
        step=step,
        version=version,
        quantlib=__version__,
        key=key,
        parameters=dict(parameters),
        inputs=references,
        files=dict(sorted(output.files.items())),
        facts=output.facts,
    )
    run: dict[str, Any] = {
        "seconds": round(time.monotonic() - started, 3),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    if output.remarks:
        run["remarks"] = output.remarks
    store.put_bytes(json.dumps(run).encode(), f"{folder}/{RUN_NAME}")
    if store.put_new(receipt.to_json(), f"{folder}/{RECEIPT_NAME}"):
        return receipt
    if (other := read_committed(store, folder)) is not None:
        return other
    raise StoreError(
        store.full_address(folder),
        "another run committed this step meanwhile, with another result; run it again",
    )


def run_facts(store: Store, receipt: Receipt) -> dict[str, Any]:
    """``seconds``, ``peak_mib`` and, if any, ``remarks`` of the run that committed a step."""
    path = f"{receipt.folder}/{RUN_NAME}"
    return json.loads(bytes(store.read(path))) if store.exists(path) else {}


def read_lineage(store: Store, receipt: Receipt) -> list[Receipt]:
    """The receipt and every receipt that it rests on, each once, the earliest steps first.

    Raises:
        StoreError: A receipt on the way is missing or is not the one that was read.
    """
    found: dict[str, Receipt] = {}

    def visit(current: Receipt, digest: str) -> None:
        if digest in found:
            return
        for reference in current.inputs.values():
            path = f"{step_folder(reference.step, reference.key)}/{RECEIPT_NAME}"
            earlier = Receipt.from_json(store.read(path), origin=store.full_address(path))
            if earlier.digest() != reference.digest:
                raise StoreError(store.full_address(path), "is not the receipt that was read")
            visit(earlier, reference.digest)
        found[digest] = current

    visit(receipt, receipt.digest())
    return list(found.values())
