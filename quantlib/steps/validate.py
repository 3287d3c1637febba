"""Judges the merged checkpoint against the original model, and delivers verdict and report.

A failed verdict does not fail this step, which would lose its outputs: the gate step does that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import ReceiptSource
from quantlib.checks.cache import cache_cpu_problem
from quantlib.checks.recipe import recipe_from_text
from quantlib.errors import InvalidInputError
from quantlib.evaluation.choose_engine import choose_engine
from quantlib.evaluation.evaluate import (
    REFERENCE_STEP,
    OriginalHead,
    Setting,
    run_original,
    run_quantized,
    with_throughput,
)
from quantlib.evaluation.gate import Figures, judge
from quantlib.evaluation.judging import (
    dequantized_checkpoint_reason,
    dequantized_foreign_reason,
    dequantized_source_reason,
    emulated_checkpoint_reason,
    in_words,
)
from quantlib.evaluation.process import Workers
from quantlib.models import BaseModelAdapter
from quantlib.recipe import Recipe
from quantlib.report.build import LINEARS_NAME, build_report, read_json
from quantlib.report.html import render_brief_html, render_html
from quantlib.report.model import HTML_NAME, JSON_NAME
from quantlib.steps.contract import ARTIFACT_BYTES, StepCall
from quantlib.steps.delivery import deliver
from quantlib.steps.layout import open_receipt
from quantlib.steps.texts import input_of
from quantlib.steps.windows import read_windows
from quantlib.store import Receipt, StepOutput, Store, commit_step, read_lineage
from quantlib.text.tokenizer import load_tokenizer

STEP = "validate"
EVALUATION_NAME = "evaluation.json"
_MADE_ELSEWHERE = "cpu_problem"
"""What a checkpoint's facts hold if it was made elsewhere."""


def validate(
    store: Store,
    recipe: Recipe,
    model: Receipt,
    planned: Receipt,
    checkpoint: Receipt,
    device: str = "auto",
    gpus: int = 1,
) -> Receipt:
    """Judges a checkpoint.

    The receipt's facts are the ``verdict`` (passed or failed), the ``reason``, the engine and the
    figures; a figure that is not finite is None there.

    Args:
        store: Where the steps' files are.
        recipe: What to judge by.
        model: The fetch step's receipt.
        planned: The plan step's receipt, or another one that names the windows of the held-out
            text.
        checkpoint: The merge step's receipt, or the adopt step's.
        device: auto, cpu or cuda.
        gpus: What each of the two models is spread over.

    Raises:
        InvalidInputError: The engine is not installed or cannot spread a model.
        QuantlibError: The engine failed; the message ends with the last lines of its log.
    """
    setting = _setting(store, recipe, model, planned, checkpoint, device, gpus)
    parameters: dict[str, Any] = {
        "fallback_reason": setting.engine.fallback_reason,
        "thresholds": recipe.validation.thresholds.model_dump(mode="json"),
    }
    how = in_words(setting.checkpoint_dequantized, setting.checkpoint_emulated)
    if setting.checkpoint_dequantized:
        parameters["dequantized"] = True
    if setting.checkpoint_emulated:
        parameters["emulated"] = True
    with Workers(setting.engine.name) as workers:
        reference = run_original(store, setting, model, workers)

        def work(output: StepOutput) -> None:
            figures, evaluation = run_quantized(
                store, setting, reference, checkpoint, output, workers
            )
            linears = read_json(store, checkpoint, LINEARS_NAME)
            gate = judge(figures, recipe.validation.thresholds, linears)
            if how is not None:
                gate = replace(gate, reason=f"{gate.reason}; {how}")
            output.add_json(EVALUATION_NAME, evaluation | {"gate": gate.to_dict()})
            output.facts = {
                "verdict": "passed" if gate.passed else "failed",
                "reason": gate.reason,
                "engine": setting.engine.name,
                "engine_version": setting.engine.version,
                "device": evaluation["device"],
                **{name: _finite_or_none(value) for name, value in _metrics(figures).items()},
                **_drafting(evaluation["drafting"]),
            }

        inputs = {"model": model, "checkpoint": checkpoint, "reference": reference}
        return commit_step(store, STEP, parameters, inputs, work, setting.numerics)


def read_evaluation(store: Store, validation: Receipt) -> dict[str, Any]:
    """The evaluation of a validate step, with the tokens per second of the runs behind it.

    Raises:
        StoreError: A file is missing or is not what its receipt says.
    """
    evaluation = read_json(store, validation, EVALUATION_NAME)
    steps = {receipt.step: receipt for receipt in read_lineage(store, validation)}
    return with_throughput(store, evaluation, steps[REFERENCE_STEP], validation)


def main(call: StepCall) -> None:
    store = call.store()
    recipe = recipe_from_text(call.text("recipe"))
    model, checkpoint = call.receipt("model"), call.receipt("checkpoint")
    planned = call.receipt("plan")
    receipt = validate(store, recipe, model, planned, checkpoint, call.text("device"), _gpus(call))
    evaluation = read_evaluation(store, receipt)
    report = build_report(store, recipe, checkpoint, evaluation, receipt, planned)
    deliver(call, "validation", store, receipt)
    call.write_artifact("metrics", None, _finite_numbers(receipt.facts))
    page = render_html(report).encode()
    # Not part of the receipt: times are in it.
    whole = f"{receipt.aside}/{HTML_NAME}"
    store.put_bytes(page, whole)
    brief = render_brief_html(report, ARTIFACT_BYTES, store.full_address(whole))
    call.write_artifact("report", brief.encode())
    call.write_beside("report", HTML_NAME, page)
    call.write_beside("report", JSON_NAME, report.to_json())
    call.write_parameter("verdict", receipt.facts["verdict"])
    call.write_parameter("reason", receipt.facts["reason"])


def _gpus(call: StepCall) -> int:
    """GPUs that share the model. The plan's word for none is 0: one model, on whatever there is."""
    text = call.text("gpus")
    if not text.isdecimal():
        raise InvalidInputError.one("parameter gpus", f"is no number of GPUs: {text!r}")
    return max(1, int(text))


def _setting(
    store: Store,
    recipe: Recipe,
    model: Receipt,
    planned: Receipt,
    checkpoint: Receipt,
    device: str,
    gpus: int,
) -> Setting:
    import torch

    from quantlib.runtime.devices import numerics, resolve_device

    section = recipe.validation
    windowed = input_of(store, planned, "evaluation")
    source = ReceiptSource(store, model)
    dtype = checkpoint.facts["serve"]["dtype"]
    original, adapter = open_receipt(store, model)
    engine = choose_engine(section.engine, gpus=gpus)
    return Setting(
        engine=engine,
        device=device,
        dtype=dtype,
        windows=read_windows(store, windowed),
        windowed=windowed,
        tokenizer=load_tokenizer(source),
        prompts=section.prompts,
        max_new_tokens=section.max_new_tokens,
        numerics=numerics(resolve_device(device), getattr(torch, dtype)),
        tensor_parallel_size=gpus,
        dequantized=dequantized_source_reason(source, engine.name, device),
        checkpoint_dequantized=_not_as_served(recipe, checkpoint, adapter, engine.name, device),
        checkpoint_emulated=None
        if _MADE_ELSEWHERE in checkpoint.facts
        else emulated_checkpoint_reason(recipe.quantization, adapter, engine.name, device),
        cached=recipe.quantization.cache is not None
        and cache_cpu_problem(recipe.quantization, adapter) is None,
        renamed=adapter.layout.renamed,
        drafts=adapter.drafts,
        original_head=_original_head(original, adapter, checkpoint),
    )


def _original_head(
    original: Checkpoint, adapter: BaseModelAdapter, checkpoint: Receipt
) -> OriginalHead | None:
    """The original's head, where the checkpoint's is quantized."""
    if "lm_head" not in checkpoint.facts.get("outer", ()):
        return None
    matrix = adapter.embedding if adapter.tied else adapter.head
    names = {"weight": f"{matrix}.weight", "bias": f"{adapter.head}.bias"}
    present = {part: name for part, name in names.items() if name in original.tensors}
    return OriginalHead(original, present)


def _not_as_served(
    recipe: Recipe, checkpoint: Receipt, adapter: BaseModelAdapter, engine: str, device: str
) -> str | None:
    """Why a checkpoint is judged by its dequantized weights; None where it is not."""
    if _MADE_ELSEWHERE in checkpoint.facts:
        problem = checkpoint.facts[_MADE_ELSEWHERE]
        return dequantized_foreign_reason(problem, engine, device)
    return dequantized_checkpoint_reason(recipe.quantization, adapter, engine, device)


def _metrics(figures: Figures) -> dict[str, float]:
    return {
        "perplexity_original": figures.perplexity_original,
        "perplexity_quantized": figures.perplexity_quantized,
        "perplexity_increase": figures.perplexity_increase,
        "kl_mean": figures.kl_mean,
        "kl_standard_error": figures.kl_standard_error,
        "top1_agreement": figures.top1_agreement,
    }


def _drafting(drafting: Mapping[str, Any] | None) -> dict[str, Any]:
    """The share of drafts that both models accept, or why nothing was drafted."""
    if drafting is None:
        return {}
    if drafting["refused"]:
        return {"drafting_refused": drafting["refused"]}
    return {f"draft_acceptance_{name}": drafting[name] for name in ("original", "quantized")}


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _finite_numbers(facts: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in facts.items() if isinstance(value, float)}
