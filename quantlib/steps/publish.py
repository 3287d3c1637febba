"""Publishes a checkpoint that passed the gate, under its digest and with the manifest last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime

from quantlib.checks.group_size import settled_as
from quantlib.checks.recipe import recipe_from_text
from quantlib.checks.suppression import possible_suppression
from quantlib.errors import GateFailedError, InvalidInputError, StoreError
from quantlib.publishing.destination import Destination, Draft, record_of
from quantlib.publishing.opening import open_destination
from quantlib.publishing.published import Published, manifest_of
from quantlib.publishing.reading import open_published
from quantlib.publishing.receipts import read_receipts, render_receipts
from quantlib.publishing.signing import Signer, require_usable, signer_from_environment
from quantlib.quantization import QuantizationSection
from quantlib.recipe import AskedRecipe, Recipe
from quantlib.registries.registering import register_everywhere
from quantlib.report.build import build_report, joined, model_name
from quantlib.report.html import render_html
from quantlib.report.manifest import (
    MANIFEST_NAME,
    RECEIPTS_NAME,
    SIGNATURE_NAME,
    Manifest,
    checkpoint_digest,
    figures_of,
)
from quantlib.report.metadata import published_metadata
from quantlib.report.model import HTML_NAME, JSON_NAME
from quantlib.report.model_card import CARD_NAME, render_model_card
from quantlib.report.provenance import PROVENANCE_NAME, provenance_of
from quantlib.runtime.code_version import code_versions
from quantlib.steps.contract import StepCall
from quantlib.steps.delivery import deliver
from quantlib.steps.validate import read_evaluation
from quantlib.store import (
    Receipt,
    StepOutput,
    Store,
    commit_step,
    read_lineage,
)
from quantlib.store.garbage import PUBLISHED

STEP = "publish"


def publish(
    store: Store,
    recipe: Recipe,
    destination: str,
    checkpoint: Receipt,
    validation: Receipt,
    tasks: Receipt | None = None,
    job: str = "",
    signer: Signer | None = None,
    replace_signature: bool = False,
) -> tuple[Receipt, str]:
    """Publishes a checkpoint under an address that never means another one.

    All that is published, and signed where the environment configures a signer, is built here from
    receipts that are verified on the way; a manifest that is found is compared with it, and stands
    where both say the same. A folder that a killed run left without a manifest is completed. Of
    several publishers of one model at once, one writes and the others wait.

    A destination ``published`` in the store itself gets no copy: the manifest names the store's own
    files.

    Args:
        store: Where the steps' files are.
        recipe: What the checkpoint was made by.
        destination: As :func:`quantlib.publishing.opening.open_destination` takes it; empty for
            the recipe's, else ``published`` beside the store.
        checkpoint: The merge step's receipt.
        validation: The validate step's receipt of this checkpoint.
        tasks: The tasks step's receipt of this checkpoint, where that step is done.
        job: Digest of the watcher's job that asked for it, which is noted; empty for none.
        signer: Who signs; None for whom the environment configures, if it does.
        replace_signature: Whether somebody else's signature is replaced.

    Returns:
        The receipt, and the address of what was published.

    Raises:
        GateFailedError: The checkpoint did not pass the gate.
        InvalidInputError: The validation is of another checkpoint, the destination cannot be
            written, what is published there already is damaged or is signed by somebody else, or
            the signer that is configured cannot sign.
        StoreError: A file of the store is missing or damaged, or a write failed.
    """
    _require_passed(checkpoint, validation)
    if tasks is not None and not tasks.facts["tasks"]:
        tasks = None
    if tasks is not None:
        _require_passed(checkpoint, tasks)
    signer = signer or signer_from_environment()
    place = _destination(store, recipe, destination)
    draft = _draft(store, recipe, checkpoint, validation, tasks, place.address)
    published = place.publish(draft, signer, replace_signature)
    if job:
        place.enter_job(job, published)
    register_everywhere(draft, published, recipe)

    def work(output: StepOutput) -> None:
        output.add_bytes(MANIFEST_NAME, published.manifest)
        output.facts = {
            "address": published.address,
            "name": draft.manifest.name,
            "checkpoint_digest": draft.manifest.checkpoint,
        }
        if uri := published.storage_uri:
            output.facts["storage_uri"] = uri

    manifest = hashlib.sha256(published.manifest).hexdigest()
    parameters = {"address": published.address, "manifest": manifest}
    inputs = {"checkpoint": checkpoint, "validation": validation}
    if tasks is not None:
        inputs["tasks"] = tasks
    return commit_step(store, STEP, parameters, inputs, work), published.address


def sign_published(
    store: Store, asked: AskedRecipe, published: Published, signer: Signer, replace: bool = False
) -> tuple[str, bool]:
    """Publishes again what is there, from the receipts in the store, and signs that.

    Args:
        store: Where the steps' files are.
        asked: What the checkpoint was made by.
        published: It says which receipts to look up, and what it is called, and nothing more.
        signer: Who signs.
        replace: Whether somebody else's signature is replaced.

    Returns:
        The address of what is signed, which is another one where a signature is part of what an
        address means, and whether the signature was made now.

    Raises:
        InvalidInputError: The store or the recipe is of another checkpoint, or as
            :func:`publish` says.
        StoreError: It cannot be read or written.
    """
    require_usable(signer)
    where = f"{published.address}/{RECEIPTS_NAME}"
    receipts = published.read(RECEIPTS_NAME)
    if receipts is None:
        raise InvalidInputError.one(where, "there is no such file", "publish the checkpoint first")
    named = read_receipts(receipts, where)
    lineage = {}
    for receipt in named:
        if not store.exists(receipt.address):
            raise InvalidInputError.one(store.full_address(receipt.address), "is missing")
        lineage[receipt.digest()] = Receipt.from_json(
            store.read(receipt.address), store.full_address(receipt.address)
        )
    validation = lineage.get(named[-1].digest())
    read = validation.inputs.get("checkpoint") if validation else None
    checkpoint = lineage.get(read.digest) if read else None
    fetched = next((each for each in lineage.values() if each.step == "fetch"), None)
    promised = published.promised or manifest_of(published).checkpoint
    if (
        validation is None
        or checkpoint is None
        or fetched is None
        or checkpoint.facts.get("checkpoint_digest") != promised
    ):
        raise InvalidInputError.one(
            published.address, "is of another checkpoint than the receipts in the store"
        )
    name = published.name or manifest_of(published).name
    expected = asked.publish.name or model_name(fetched.facts)
    if expected != name:
        raise InvalidInputError.one(
            published.address,
            f"is called {name}, and by the recipe it is {expected}",
            "name it in the recipe (publish.name), or say by --model where the model came from",
        )
    before = published.read(SIGNATURE_NAME)
    _, address = publish(
        store,
        _as_made(asked, lineage.values()),
        published.destination,
        checkpoint,
        validation,
        next((each for each in lineage.values() if each.step == "tasks"), None),
        signer=signer,
        replace_signature=replace,
    )
    return address, open_published(address).read(SIGNATURE_NAME) != before


def _as_made(asked: AskedRecipe, lineage: Iterable[Receipt]) -> Recipe:
    """What was done where this was asked for: what it leaves to the model is of the receipts."""
    parameters = next(each for each in lineage if each.step == "quantize").parameters
    made, suppressed = parameters["quantization"], parameters["outlier_suppression"] is not None
    sized = {field: made[field] for field in ("weights", "schemes")}
    section = QuantizationSection.model_validate(asked.quantization.model_dump() | sized)
    return settled_as(asked, section, possible_suppression(asked) if suppressed else None)


def _draft(
    store: Store,
    recipe: Recipe,
    checkpoint: Receipt,
    validation: Receipt,
    tasks: Receipt | None,
    destination: str,
) -> Draft:
    """What is to be published, built from the receipts."""
    evaluation = read_evaluation(store, validation)
    report = build_report(store, recipe, checkpoint, evaluation, validation, tasks=tasks)
    if checkpoint_digest(report.sizes.files) != report.provenance.checkpoint_digest:
        raise StoreError(
            store.full_address(checkpoint.address),
            "its files do not have the digest of its receipt",
        )
    lineage = read_lineage(store, validation)
    if tasks is not None:
        lineage = joined(read_lineage(store, tasks), lineage)
    texts = {
        JSON_NAME: report.to_json(),
        HTML_NAME: render_html(report).encode(),
        CARD_NAME: render_model_card(report).encode(),
        PROVENANCE_NAME: json.dumps(provenance_of(report), indent=1).encode() + b"\n",
        RECEIPTS_NAME: render_receipts(lineage),
    }
    files = dict(report.sizes.files) | {name: record_of(text) for name, text in texts.items()}
    assert report.evaluation is not None  # it was given
    manifest = Manifest(
        name=report.model.name,
        release=1,
        published_at=datetime.fromtimestamp(0, UTC),
        code=code_versions(),
        checkpoint=report.provenance.checkpoint_digest,
        by_reference=_is_in_store(store, destination),
        gate=report.verdict,
        figures=figures_of(report.evaluation),
        report=JSON_NAME,
        source=report.model.source,
        recipe=report.provenance.recipe_digest,
        files=dict(sorted(files.items())),
    )
    return Draft(store, checkpoint, texts, manifest)


def _is_in_store(store: Store, destination: str) -> bool:
    """Whether what is published lies in the store, as it may in one place of it only."""
    if destination == f"{store.address}/{PUBLISHED}":
        return True
    if destination == store.address or destination.startswith(f"{store.address}/"):
        raise InvalidInputError.one(
            f"publish destination {destination}",
            "lies in the store",
            f"give {store.address}/{PUBLISHED}, or a place outside of it",
        )
    return False


def main(call: StepCall) -> None:
    store, recipe = call.store(), recipe_from_text(call.text("recipe"))
    checkpoint = call.receipt("checkpoint")
    receipt, address = publish(
        store,
        recipe,
        call.text("destination"),
        checkpoint,
        call.receipt("validation"),
        call.receipt("tasks"),
        call.text("job"),
    )
    about = published_metadata(store, recipe, checkpoint, receipt)
    deliver(call, "published", store, receipt, about)
    call.write_parameter("address", address)


def _require_passed(checkpoint: Receipt, validation: Receipt) -> None:
    if validation.inputs.get("checkpoint") != checkpoint.reference():
        raise InvalidInputError.one(
            f"{validation.step} {validation.key[:12]}",
            f"is not of the checkpoint {checkpoint.key[:12]}",
            "validate this checkpoint first",
        )
    if validation.facts["verdict"] != "passed":
        raise GateFailedError(
            f"the checkpoint {checkpoint.key[:12]} is not published: it did not pass the gate: "
            f"{validation.facts['reason']}",
            validation.facts["verdict"],
        )


def _destination(store: Store, recipe: Recipe, given: str) -> Destination:
    """Where to publish."""
    chosen = given or recipe.publish.destination or ""
    if not chosen:
        parent, _, name = store.address.rpartition("/")
        if not name or parent in ("s3:/", ""):
            raise InvalidInputError.one(
                "publish.destination", f"is missing, and nothing lies beside {store.address}"
            )
        chosen = f"{parent}/published"
    return open_destination(chosen, recipe.publish.base_image or "")
