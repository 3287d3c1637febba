"""A step's work as a transaction: all of its files and then its receipt, or nothing."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from quantlib.errors import InvalidInputError, StoreError
from quantlib.runtime.code_version import code_versions
from quantlib.runtime.log import about
from quantlib.runtime.surroundings import cpu_name, image, package_versions
from quantlib.runtime.usage import gpu_peak_bytes, peak_bytes, usage
from quantlib.store.base import Store
from quantlib.store.condemned import condemned_files
from quantlib.store.hashing import hash_file
from quantlib.store.layout import require_layout
from quantlib.store.leases import lease
from quantlib.store.partial import Partial
from quantlib.store.receipt import (
    FileRecord,
    InputReference,
    MadeBy,
    Receipt,
    aside_folder,
    receipt_path,
    step_key,
)
from quantlib.store.scratch import Scratch

RUN_NAME = "run.json"
"""Time, peak memory and remarks of the run that committed a step; no part of the receipt."""

USED_NAME = "used"
"""An empty file that is written whenever another run takes the step over: the step is in use."""

_PARALLEL_FILES = 8


@dataclass
class StepOutput:
    """Where a step's work writes its files.

    Attributes:
        store: The store that the files go to.
        scratch: A local folder for files in the making; removed when the step ends.
        partial: What an earlier run of the step, which did not end, has done already.
        aside: The folder in the store for what is no result: logs, times.
        facts: Small results that go into the receipt.
        remarks: Sentences on this run, which depend on the machine and stay out of the receipt.
        peak_bytes: Largest memory of what the work let another process start, which the system
            counts as that one's.
        gpus: How many devices it computes on, where those are CUDA devices.
    """

    store: Store
    scratch: Path
    partial: Partial
    aside: str
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    peak_bytes: int = 0
    gpus: int = 1

    def local(self, name: str) -> Path:
        """A path in the scratch folder to write the file ``name`` at, before :meth:`add`."""
        path = self.scratch / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, name: str, *, sha256: str | None = None, tensors: int | None = None) -> None:
        """Moves the finished file at :meth:`local` to the store.

        Args:
            name: What the step calls it.
            sha256: Its digest, where writing it gave one already.
            tensors: How many tensors it holds, if it holds tensors.
        """
        path = self.local(name)
        record = FileRecord(
            bytes=path.stat().st_size, sha256=sha256 or hash_file(path), tensors=tensors
        )
        if self.has(record):
            path.unlink()
        else:
            self.store.put_file(path, record.blob, record.sha256)
        self.files[name] = record

    def add_bytes(self, name: str, data: bytes) -> None:
        """Writes a small file."""
        record = FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        if not self.has(record):
            self.store.put_bytes(data, record.blob)
        self.files[name] = record

    def add_json(self, name: str, value: Any) -> None:
        """Writes a small JSON file."""
        self.add_bytes(name, json.dumps(value, indent=1, sort_keys=True).encode())

    def add_local_file(self, name: str, source: Path, record: FileRecord) -> None:
        """Takes over a local file that stays where it is, and whose digest is known."""
        if not self.has(record):
            self.store.import_file(source, record.blob, record.sha256)
        self.files[name] = record

    def add_reference(self, name: str, record: FileRecord) -> None:
        """Names what is in the store already, as a file of another step: nothing is copied."""
        self.files[name] = record

    def has(self, record: FileRecord) -> bool:
        """Whether the store has a content, and will keep it."""
        return record.blob not in self._condemned and self.store.holds(record.blob, record)

    @cached_property
    def _condemned(self) -> frozenset[str]:
        return condemned_files(self.store)


def read_committed(store: Store, step: str, key: str) -> Receipt | None:
    """The receipt of a step if it is whole and its files are all as it says, else None.

    Raises:
        StoreError: The store cannot be asked.
    """
    path = receipt_path(step, key)
    if not store.exists(path):
        return None
    try:
        receipt = Receipt.from_json(store.read(path), origin=store.full_address(path))
    except InvalidInputError:
        return None  # torn by a power cut, or damaged
    if (receipt.step, receipt.key) != (step, key):
        return None
    with ThreadPoolExecutor(_PARALLEL_FILES) as pool:
        held = pool.map(lambda record: store.holds(record.blob, record), receipt.files.values())
        return receipt if all(held) else None


def difference(found: FileRecord, expected: FileRecord, recorder: str) -> str | None:
    """How a file differs from what was recorded of it, in words; None where it does not.

    Args:
        found: What the store vouches for.
        expected: What was recorded.
        recorder: What recorded it: ``receipt`` or ``manifest``.
    """
    if found.bytes != expected.bytes:
        return f"holds {found.bytes} bytes, not {expected.bytes}"
    if found.sha256 != expected.sha256:
        return f"its sha256 is {found.sha256[:12]}…, not the {recorder}'s {expected.sha256[:12]}…"
    return None


def commit_step(
    store: Store,
    step: str,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, Receipt],
    work: Callable[[StepOutput], None],
    numerics: Mapping[str, Any] | None = None,
) -> Receipt:
    """Runs a step's work once.

    A step that is committed already, with files that still verify, is not run again. Otherwise
    ``work`` writes files, and the receipt that commits them is written last. Whatever is killed on
    the way leaves no receipt. Of several runs of one step at once, one works and the others wait
    for it.

    Args:
        store: Where the step's files go.
        step: Name of the step.
        parameters: JSON values that decide the result, with all defaults filled in.
        inputs: Receipts that decide the result, by name.
        work: Writes the step's files and facts.
        numerics: What decides the rounding of the step's arithmetic, if it does any.

    Returns:
        The step's receipt.

    Raises:
        InvalidInputError: The store has another layout.
        StoreError: The store failed, or another run committed the step meanwhile with another
            result.
    """
    require_layout(store)
    results = {name: receipt.result_digest() for name, receipt in inputs.items()}
    code = code_versions()
    key = step_key(step, code, parameters, numerics or {}, results)
    if (done := _taken_over(store, step, key)) is not None:
        return done
    references = {name: receipt.reference() for name, receipt in inputs.items()}
    with about(key=key), lease(store, f"{step}/{key}", uses=tuple(references.values())):
        if (done := _taken_over(store, step, key)) is not None:
            return done
        receipt, run = _worked(store, step, key, code, parameters, numerics or {}, references, work)
        store.put_bytes(json.dumps(run).encode(), f"{receipt.aside}/{RUN_NAME}")
        committed = _committed(store, receipt)
        Partial(store, step, key).clear()
        return committed


def _taken_over(store: Store, step: str, key: str) -> Receipt | None:
    done = read_committed(store, step, key)
    if done is not None:
        store.put_bytes(b"", f"{done.aside}/{USED_NAME}")
    return done


def _worked(
    store: Store,
    step: str,
    key: str,
    code: Mapping[str, str],
    parameters: Mapping[str, Any],
    numerics: Mapping[str, Any],
    references: Mapping[str, InputReference],
    work: Callable[[StepOutput], None],
) -> tuple[Receipt, dict[str, Any]]:
    """Does the work; its receipt, not written yet, and what is noted of the run."""
    started, read, written = time.monotonic(), usage.read_bytes, usage.written_bytes
    with Scratch(store.scratch, key) as scratch:
        partial = Partial(store, step, key)
        output = StepOutput(store, scratch, partial, aside_folder(step, key))
        work(output)
    receipt = Receipt(
        step=step,
        key=key,
        code=dict(code),
        parameters=dict(parameters),
        numerics=dict(numerics),
        inputs=dict(references),
        files=dict(sorted(output.files.items())),
        facts=output.facts,
        made_by=MadeBy(image=image(), hardware=cpu_name(), versions=package_versions()),
    )
    seconds = time.monotonic() - started
    usage.peak_bytes = max(usage.peak_bytes, output.peak_bytes)
    run: dict[str, Any] = {
        "seconds": round(seconds, 3),
        "peak_mib": round(max(peak_bytes(), output.peak_bytes) / 2**20),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "read_bytes": usage.read_bytes - read,
        "written_bytes": usage.written_bytes - written,
    }
    if numerics.get("device") == "cuda":
        run["gpu_seconds"] = round(seconds * output.gpus, 3)
        usage.gpu_seconds += seconds * output.gpus
        if (peak := gpu_peak_bytes()) is not None:
            run["gpu_peak_mib"] = round(peak / 2**20)
    if output.remarks:
        run["remarks"] = output.remarks
    return receipt, run


def _committed(store: Store, receipt: Receipt) -> Receipt:
    """Writes a receipt, unless another one of the same result is there."""
    if not store.put_new(receipt.to_json(), receipt.address):
        other = read_committed(store, receipt.step, receipt.key)
        if other is not None:
            _require_same_result(store, receipt, other)
            return other
        store.delete(receipt.address)  # torn, or of files that are damaged
        if not store.put_new(receipt.to_json(), receipt.address):
            raise StoreError(
                store.full_address(receipt.address), "was written meanwhile; run again"
            )
    # gc may have decided on a file before this receipt named it.
    if not all(_is_there(store, record) for record in receipt.files.values()):
        store.delete(receipt.address)
        raise StoreError(
            store.full_address(receipt.address),
            "a file that it names was removed meanwhile; run again",
        )
    return receipt


def _is_there(store: Store, record: FileRecord) -> bool:
    return store.exists(record.blob) and store.size(record.blob) == record.bytes


def _require_same_result(store: Store, receipt: Receipt, committed: Receipt) -> None:
    if receipt.result_digest() == committed.result_digest():
        return
    refused = f"{receipt.aside}/refused-{receipt.digest().removeprefix('sha256:')[:12]}.json"
    store.put_bytes(receipt.to_json(), refused)
    names = sorted(
        name
        for name in receipt.files.keys() | committed.files.keys()
        if receipt.files.get(name) != committed.files.get(name)
    )
    what = f"other bytes in {', '.join(names)}" if names else "other facts"
    raise StoreError(
        store.full_address(receipt.address),
        f"another run committed this step with {what}: receipt {committed.digest()}, "
        f"made by {_maker(committed)}; this run's is {receipt.digest()}, made by "
        f"{_maker(receipt)}, kept as {refused}. What is committed stays: run again",
    )


def _maker(receipt: Receipt) -> str:
    device = receipt.numerics.get("hardware") or receipt.made_by.hardware
    return ", ".join(filter(None, (receipt.made_by.image, device))) or "an unknown machine"


def run_facts(store: Store, receipt: Receipt) -> dict[str, Any]:
    """What ``run.json`` says of the run that committed a step; docs/formats/store.md lists it."""
    path = f"{receipt.aside}/{RUN_NAME}"
    if not store.exists(path):
        return {}
    with suppress(ValueError):
        found = json.loads(bytes(store.read(path)))
        return found if isinstance(found, dict) else {}
    return {}


def was_reused(store: Store, receipt: Receipt) -> bool:
    """Whether a run has found the step in the store, which another one before it has done."""
    return store.exists(f"{receipt.aside}/{USED_NAME}")


def read_lineage(store: Store, receipt: Receipt) -> list[Receipt]:
    """The receipt and every receipt that it rests on, each once, the earliest steps first.

    Raises:
        InvalidInputError: A receipt on the way is damaged.
        StoreError: A receipt on the way is missing or is not the one that was read.
    """
    found: dict[str, Receipt] = {}

    def visit(current: Receipt, digest: str) -> None:
        if digest in found:
            return
        for reference in current.inputs.values():
            path = reference.receipt_path
            earlier = Receipt.from_json(store.read(path), origin=store.full_address(path))
            if earlier.digest() != reference.digest:
                raise StoreError(store.full_address(path), "is not the receipt that was read")
            visit(earlier, reference.digest)
        found[digest] = current

    visit(receipt, receipt.digest())
    return list(found.values())
