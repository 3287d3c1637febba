"""Publishes a checkpoint that passed the gate: a folder under its digest, the manifest last."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantlib.errors import GateFailedError, InvalidInputError, Problem, StoreError
from quantlib.publishing.jobs import enter_job
from quantlib.publishing.signing import (
    Signer,
    ensure_signed,
    sign_manifest,
    signer_from_environment,
)
from quantlib.recipe import Recipe, recipe_from_text
from quantlib.report.build import build_report
from quantlib.report.html import render_html
from quantlib.report.manifest import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    Manifest,
    checkpoint_digest,
    figures_of,
    verify_published,
)
from quantlib.report.model import HTML_NAME, JSON_NAME, Report
from quantlib.report.model_card import CARD_NAME, render_model_card
from quantlib.report.provenance import PROVENANCE_NAME, provenance_of
from quantlib.report.summary import step_summary
from quantlib.steps.contract import StepCall
from quantlib.steps.validate import read_evaluation
from quantlib.store import (
    LocalStore,
    Receipt,
    StepOutput,
    Store,
    commit_step,
    open_store,
    transfer,
)
from quantlib.store.transaction import difference

STEP = "publish"


def publish(
    store: Store,
    recipe: Recipe,
    destination: str,
    checkpoint: Receipt,
    validation: Receipt,
    job: str = "",
) -> tuple[Receipt, str]:
    """Publishes a checkpoint to ``<destination>/<model name>/<digest>``.

    Publishing again verifies what is there. A folder that a killed run left without a manifest is
    completed. Of several publishers of one checkpoint, one writes and the others wait for it. Where
    the environment configures a signer, the folder is signed, also one that is there already.

    Args:
        store: Where the steps' files are.
        recipe: What the checkpoint was made by.
        destination: A folder or ``s3://bucket/prefix``; empty for the recipe's, else ``published``
            beside the store.
        checkpoint: The merge step's receipt.
        validation: The validate step's receipt of this checkpoint.
        job: Digest of the watcher's job that asked for it, which is noted; empty for none.

    Returns:
        The receipt, and the address of the published folder.

    Raises:
        GateFailedError: The checkpoint did not pass the gate.
        InvalidInputError: The validation is of another checkpoint, the destination cannot be
            written, what is published there already is not what its manifest says or is signed by
            somebody else, or the signer that is configured cannot sign.
        StoreError: A file of the store is missing or damaged, or a write failed.
    """
    _require_passed(checkpoint, validation)
    signer = signer_from_environment()
    evaluation = read_evaluation(store, validation)
    report = build_report(store, recipe, checkpoint, evaluation, validation)
    digest = report.provenance.checkpoint_digest.removeprefix("sha256:")
    destination = _destination(store, recipe, destination)
    target = open_store(f"{destination}/{report.model.name}/{digest}")
    with _exclusive(target):
        if target.exists(MANIFEST_NAME):
            verify_published(target)
        else:
            _write_folder(store, checkpoint, report, target, signer)
        manifest = bytes(target.read(MANIFEST_NAME))
        if signer is not None:
            ensure_signed(target, manifest, signer)
    if job:
        enter_job(destination, job, target.address, f"sha256:{digest}")

    def work(output: StepOutput) -> None:
        output.add_bytes(MANIFEST_NAME, manifest)
        output.facts = {"address": target.address, "checkpoint_digest": f"sha256:{digest}"}

    parameters = {"address": target.address, "manifest": hashlib.sha256(manifest).hexdigest()}
    inputs = {"checkpoint": checkpoint, "validation": validation}
    return commit_step(store, STEP, parameters, inputs, work), target.address


def main(call: StepCall) -> None:
    store = call.store()
    receipt, address = publish(
        store,
        recipe_from_text(call.text("recipe")),
        call.text("destination"),
        call.receipt("checkpoint"),
        call.receipt("validation"),
        call.text("job"),
    )
    call.write_receipt("published", store, receipt)
    call.write_artifact("summary", step_summary(store, receipt).encode())
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


def _destination(store: Store, recipe: Recipe, given: str) -> str:
    """The address to publish below, without a slash at its end."""
    chosen = (given or recipe.publish.destination or "").removeprefix("file://")
    if not chosen:
        parent, _, name = store.address.rpartition("/")
        if not name or parent in ("s3:/", ""):
            raise InvalidInputError.one(
                "publish.destination", f"is missing, and nothing lies beside {store.address}"
            )
        return f"{parent}/published"
    if "://" not in chosen:
        return str(Path(chosen).absolute())
    if chosen.startswith("s3://"):
        return chosen.rstrip("/")
    raise InvalidInputError.one(
        f"publish destination {chosen}",
        "unsupported kind of destination",
        "give a folder or s3://bucket/prefix",
    )


@contextmanager
def _exclusive(target: Store) -> Iterator[None]:
    """Lets one publisher at a time write a local folder.

    In object storage there are no locks: publishers of one checkpoint write the same files there,
    and one of them the manifest.
    """
    if not isinstance(target, LocalStore):
        yield
        return
    path = _writable(target.root.parent) / f".{target.root.name}.lock"
    while True:
        with path.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the kernel lets go of it with the process
            if not _is_at(file.fileno(), path):
                continue  # the one that held it before has removed it
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


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


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _write_folder(
    store: Store, checkpoint: Receipt, report: Report, target: Store, signer: Signer | None
) -> None:
    texts = {
        JSON_NAME: report.to_json(),
        HTML_NAME: render_html(report).encode(),
        CARD_NAME: render_model_card(report).encode(),
        PROVENANCE_NAME: json.dumps(provenance_of(report), indent=1).encode() + b"\n",
    }
    if checkpoint_digest(report.sizes.files) != report.provenance.checkpoint_digest:
        raise StoreError(
            store.full_address(checkpoint.address),
            "its files do not have the digest of its receipt",
        )
    present = _files_of_a_killed_run(target, {*report.sizes.files, *texts, SIGNATURE_NAME})
    for name, record in report.sizes.files.items():
        if name not in present or difference(target.record(name), record, "receipt"):
            transfer(store, checkpoint.path(name), target, name, record)
    files = dict(report.sizes.files)
    for name, text in texts.items():
        files[name] = target.put_stream([text], name)
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
    ).to_json()
    if signer is not None:  # before the manifest, so that nothing is published unsigned
        target.put_bytes(sign_manifest(manifest, signer), SIGNATURE_NAME)
    elif SIGNATURE_NAME in present:
        target.delete(SIGNATURE_NAME)
    if not target.put_new(manifest, MANIFEST_NAME):
        verify_published(target)


def _files_of_a_killed_run(target: Store, expected: set[str]) -> set[str]:
    """What is in the folder already, of the same checkpoint; anything else is refused."""
    found = {file.path for file in target.list()}
    abandoned = {name for name in found if name.startswith(".")}  # a file in the making
    strangers = sorted(found - expected - abandoned)
    if strangers:
        raise InvalidInputError(
            Problem(target.full_address(name), "is no part of the checkpoint", "move it away")
            for name in strangers
        )
    for name in abandoned:
        target.delete(name)
    return found - abandoned
