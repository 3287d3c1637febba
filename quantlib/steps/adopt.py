"""adopt: a quantized checkpoint that is there already, in the store as merge would have left it.

What made it is known where a report of ours lies beside it whose digests are those of its files.
Of any other one, config and headers say how its weights lie.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.quantized import stated_quantization
from quantlib.checkpoint.source import ReceiptSource
from quantlib.errors import InvalidInputError, Problem
from quantlib.evaluation.limits import precision
from quantlib.formats.stored import stored
from quantlib.formats.stored.weights import StoredWeight
from quantlib.models import BaseModelAdapter
from quantlib.report.build import LINEARS_NAME
from quantlib.report.method import ForeignMethod
from quantlib.report.model import JSON_NAME, Report
from quantlib.serving.options import serving_dtype
from quantlib.sources.opening import open_source
from quantlib.steps.fetch import fetch
from quantlib.steps.layout import open_receipt
from quantlib.store import Receipt, StepOutput, Store, commit_step

STEP = "adopt"
_SAME = ("num_hidden_layers", "hidden_size", "vocab_size")
"""Fields of a config that quantizing leaves as they are."""


def adopt(store: Store, source: str, model: Receipt) -> tuple[Receipt, Report | None]:
    """Brings a quantized checkpoint into the store.

    Args:
        store: Where the files go.
        source: A folder, ``hf://org/name@revision``, or ``s3://bucket/prefix``.
        model: Receipt of the original.

    Returns:
        A receipt with the facts of a merge step's that validate and a report read, and the report
        of what made the checkpoint; None where it was made elsewhere.

    Raises:
        InvalidInputError: It is not quantized, or in a way that is not read, or not of this
            original; all problems at once.
        StepError: The hub cannot be reached.
        StoreError: Object storage cannot be read.
    """
    fetched = fetch(store, source, tokenizer=False)
    checkpoint = Checkpoint.open(ReceiptSource(store, fetched))
    _, adapter = open_receipt(store, model)
    if problems := _problems(source, checkpoint, adapter):
        raise InvalidInputError(problems)
    report = _report_beside(source, fetched)

    def work(output: StepOutput) -> None:
        for name, record in fetched.files.items():
            output.add_reference(name, record)
        linears = report.linears if report else ()
        output.add_json(LINEARS_NAME, [each.model_dump(mode="json") for each in linears])
        told = _foreign(checkpoint, fetched, adapter) if report is None else _ours(report)
        output.facts |= told | {
            "checkpoint_files": sorted(fetched.files),
            "bytes_original": model.facts["bytes"],
            "bytes_quantized": fetched.facts["bytes"],
            "blocks": adapter.blocks,
        }

    parameters = {
        "files": fetched.result_digest(),
        "report": hashlib.sha256(report.to_json()).hexdigest() if report else None,
    }
    return commit_step(store, STEP, parameters, {"model": model}, work), report


def _problems(source: str, checkpoint: Checkpoint, adapter: BaseModelAdapter) -> list[Problem]:
    if stated_quantization(checkpoint.config) is None:
        return [Problem(source, "is not quantized", "give a quantized checkpoint as the model")]
    given = checkpoint.config.get("text_config", checkpoint.config)
    wanted = adapter.text_config
    return [
        Problem(source, f"has {field} {given[field]}, the original has {wanted[field]}")
        for field in _SAME
        if field in given and field in wanted and given[field] != wanted[field]
    ]


def _report_beside(source: str, fetched: Receipt) -> Report | None:
    """The report beside a checkpoint that says of its very files how they were made."""
    files = open_source(source)
    if JSON_NAME not in files.names():
        return None
    try:
        report = Report.from_json(bytes(files.read(JSON_NAME)), origin=files.describe(JSON_NAME))
    except InvalidInputError:
        return None  # of another version, or of somebody else's making
    written = report.sizes.files
    same = all(
        name in written and written[name].sha256 == record.sha256
        for name, record in fetched.files.items()
    )
    return report if same and not isinstance(report.method, ForeignMethod) else None


def _ours(report: Report) -> dict[str, Any]:
    return {
        "checkpoint_digest": report.provenance.checkpoint_digest,
        "quantized_blocks": list(report.model.quantized_blocks),
        "carried": report.model.carried,
        "serve": report.serve,
        "removed": list(report.removed),
        "method": report.method.model_dump(mode="json"),
        "text": report.calibration and report.calibration.model_dump(mode="json"),
    }


def _foreign(checkpoint: Checkpoint, fetched: Receipt, adapter: BaseModelAdapter) -> dict[str, Any]:
    found = stored(checkpoint)
    assert found is not None
    prefixes = [adapter.block_prefix(block) for block in range(adapter.blocks)]
    names = [weight.name for weight in found.weights]
    return {
        "checkpoint_digest": fetched.facts["digest"],
        "quantized_blocks": [
            block
            for block, prefix in enumerate(prefixes)
            if any(name.startswith(prefix) for name in names)
        ],
        "serve": {"dtype": serving_dtype(checkpoint.config)},
        "removed": [],
        "method": ForeignMethod(words=found.words).model_dump(mode="json"),
        "cpu_problem": found.cpu_problem,
        "precision": precision(_least_bits(found.weights), _input_bits(checkpoint)),
    }


def _least_bits(weights: Sequence[StoredWeight]) -> float:
    """Bits of the coarsest weight, with its scales."""
    sizes = (
        8 * sum(part.bytes for part in weight.parts.values()) / math.prod(weight.shape)
        for weight in weights
    )
    return min(sizes, default=16)


def _input_bits(checkpoint: Checkpoint) -> int:
    """Bits that inputs of linears are rounded to, as far as the config says it."""
    groups = (stated_quantization(checkpoint.config) or ("", {}))[1].get("config_groups") or {}
    given = (group.get("input_activations") or {} for group in groups.values())
    return min((each.get("num_bits", 16) for each in given), default=16)
