"""Publishes a checkpoint that passed the gate: a folder under its digest, the manifest last."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from quantlib.errors import GateFailedError, InvalidInputError, Problem, StoreError
from quantlib.recipe import Recipe, recipe_from_text
from quantlib.report.build import build_report
from quantlib.report.html import render_html
from quantlib.report.manifest import (
    MANIFEST_NAME,
    PROVENANCE_NAME,
    Manifest,
    checkpoint_digest,
    figures_of,
    holds,
    provenance_of,
    unlisted,
    verify_published,
)
from quantlib.report.model import HTML_NAME, JSON_NAME, Report
from quantlib.report.model_card import CARD_NAME, render_model_card
from quantlib.steps.contract import StepCall
from quantlib.steps.validate import read_evaluation
from quantlib.store import FileRecord, LocalStore, Receipt, StepOutput, Store, commit_step

STEP = "publish"
VERSION = 1
_PARTIAL = ".partial"


def publish(
    store: Store, recipe: Recipe, destination: str, checkpoint: Receipt, validation: Receipt
) -> tuple[Receipt, str]:
    """Publishes a checkpoint to ``<destination>/<model name>/<digest>``.

    Publishing again verifies what is there. A folder that a killed run left without a manifest is
    completed. Of several publishers of one checkpoint, one writes and the others wait for it.

    Args:
        store: Where the steps' files are.
        recipe: What the checkpoint was made by.
        destination: A folder; empty for the recipe's, else ``published`` beside the store.
        checkpoint: The merge step's receipt.
        validation: The validate step's receipt of this checkpoint.

    Returns:
        The receipt, and the address of the published folder.

    Raises:
        GateFailedError: The checkpoint did not pass the gate.
        InvalidInputError: The validation is of another checkpoint, the destination cannot be
            written, or what is published there already is not what its manifest says.
        StoreError: A file of the store is missing or damaged, or a write failed.
    """
    _require_passed(checkpoint, validation)
    evaluation = read_evaluation(store, validation)
    report = build_report(store, recipe, checkpoint, evaluation, validation)
    digest = report.provenance.checkpoint_digest.removeprefix("sha256:")
    parent = _writable(_destination(store, recipe, destination) / report.model.name)
    folder = parent / digest
    with _exclusive(parent / f".{digest}.lock"):
        if (folder / MANIFEST_NAME).exists():
            verify_published(folder)
        else:
            _write_folder(store, checkpoint, report, LocalStore(folder))
    manifest = (folder / MANIFEST_NAME).read_bytes()

    def work(output: StepOutput) -> None:
        output.add_bytes(MANIFEST_NAME, manifest)
        output.facts = {"address": str(folder), "checkpoint_digest": f"sha256:{digest}"}

    parameters = {"address": str(folder), "manifest": hashlib.sha256(manifest).hexdigest()}
    inputs = {"checkpoint": checkpoint, "validation": validation}
    return commit_step(store, STEP, VERSION, parameters, inputs, work), str(folder)


def main(call: StepCall) -> None:
    store = call.store()
    receipt, address = publish(
        store,
        recipe_from_text(call.text("recipe")),
        call.text("destination"),
        call.receipt("checkpoint"),
        call.receipt("validation"),
    )
    call.write_receipt("published", store, receipt)
    call.write_parameter("address", address)


def _require_passed(checkpoint: Receipt, validation: Receipt) -> None:
    if validation.inputs.get("checkpoint") != checkpoint.reference():
        raise InvalidInputError.one(
            f"validation {validation.key[:12]}",
            f"is not of the checkpoint {checkpoint.key[:12]}",
            "validate this checkpoint first",
        )
    if validation.facts["verdict"] != "passed":
        raise GateFailedError(
            f"the checkpoint {checkpoint.key[:12]} is not published: it did not pass the gate: "
            f"{validation.facts['reason']}"
        )


def _destination(store: Store, recipe: Recipe, given: str) -> Path:
    chosen = given or recipe.publish.destination
    if chosen:
        folder = chosen.removeprefix("file://")
        if "://" not in folder:
            return Path(folder).absolute()
        raise InvalidInputError.one(
            f"publish destination {chosen}", "unsupported kind of destination", "give a folder"
        )
    if isinstance(store, LocalStore):
        return store.root.parent / "published"
    raise InvalidInputError.one(
        "publish.destination", "is missing, and the store is no folder to publish beside"
    )


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
        what = "is not writable"
    except OSError as error:
        writable, what = False, f"cannot be created: {error.strerror}"
    if not writable:
        raise InvalidInputError.one(
            f"publish destination {folder}", what, "give a folder that can be written"
        )
    return folder


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Holds a lock file that the kernel releases with the process; it is removed at the end."""
    while True:
        with path.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), path):
                continue  # the one that held it before has removed it
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _write_folder(store: Store, checkpoint: Receipt, report: Report, target: LocalStore) -> None:
    texts = {
        JSON_NAME: report.to_json(),
        HTML_NAME: render_html(report).encode(),
        CARD_NAME: render_model_card(report).encode(),
        PROVENANCE_NAME: json.dumps(provenance_of(report), indent=1).encode() + b"\n",
    }
    if checkpoint_digest(report.sizes.files) != report.provenance.checkpoint_digest:
        raise StoreError(
            store.full_address(checkpoint.folder), "its files do not have the digest of its receipt"
        )
    _require_no_strangers(target, {*report.sizes.files, *texts, _PARTIAL})
    for name, record in report.sizes.files.items():
        if not holds(target.local_path(name), record):
            _write(target, name, store.stream(checkpoint.path(name)), expected=record)
    files = dict(report.sizes.files)
    for name, text in texts.items():
        files[name] = _write(target, name, [text])
    assert report.evaluation is not None  # publish() read it
    manifest = Manifest(
        name=report.model.name,
        checkpoint=report.provenance.checkpoint_digest,
        gate=report.verdict,
        figures=figures_of(report.evaluation),
        report=JSON_NAME,
        source=report.model.source,
        recipe=report.provenance.recipe_digest,
        files=dict(sorted(files.items())),
    )
    _write(target, MANIFEST_NAME, [manifest.to_json()])


def _require_no_strangers(target: LocalStore, expected: set[str]) -> None:
    """A folder that is completed may hold only what a killed run left of the same checkpoint."""
    strangers = unlisted(target.root, expected)
    if strangers:
        raise InvalidInputError(
            Problem(str(target.root / name), "is no part of the checkpoint", "move it away")
            for name in strangers
        )


def _write(
    target: LocalStore, name: str, chunks: Iterable[bytes], expected: FileRecord | None = None
) -> FileRecord:
    """Writes one file of the folder atomically, hashing it on the way.

    Raises:
        StoreError: It could not be written, or is not what was ``expected``.
    """
    partial = target.local_path(_PARTIAL)
    digest, size = hashlib.sha256(), 0
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                size += file.write(chunk)
    except OSError as error:
        raise StoreError(target.full_address(name), error.strerror or str(error)) from None
    if expected and (size, digest.hexdigest()) != (expected.bytes, expected.sha256):
        raise StoreError(
            target.full_address(name), "what the store gave is not what its receipt says"
        )
    target.put_file(partial, name)
    return expected or FileRecord(bytes=size, sha256=digest.hexdigest())
