"""Judges the merged checkpoint against the original model, and delivers verdict and report.

A verdict other than passed does not fail this step, which would lose its outputs: the gate step
does that.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from tokenizers import Tokenizer

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import ReceiptSource
from quantlib.checks.cache import cache_cpu_problem
from quantlib.checks.recipe import recipe_from_text
from quantlib.evaluation.answers import Answer, answer_findings, rendered_questions
from quantlib.evaluation.choose_engine import choose_engine
from quantlib.evaluation.evaluate import Models, evaluation_of, judge_in_rounds
from quantlib.evaluation.figures import Figures
from quantlib.evaluation.gate import Gate, judge
from quantlib.evaluation.judging import (
    dequantized_checkpoint_reason,
    dequantized_foreign_reason,
    dequantized_source_reason,
    emulated_checkpoint_reason,
    in_words,
)
from quantlib.evaluation.likeness import file_findings
from quantlib.evaluation.limits import Limits, limits_for, precision_of, usual_factor
from quantlib.evaluation.process import Workers
from quantlib.evaluation.runs import with_throughput
from quantlib.evaluation.setting import OriginalHead, Setting
from quantlib.evaluation.weight_likeness import weight_findings
from quantlib.models import BaseModelAdapter
from quantlib.recipe import Recipe, ValidationSection
from quantlib.report.build import LINEARS_NAME, build_report, read_json
from quantlib.report.html import render_brief_html, render_html
from quantlib.report.model import HTML_NAME, JSON_NAME
from quantlib.steps.contract import ARTIFACT_BYTES, StepCall
from quantlib.steps.delivery import deliver
from quantlib.steps.layout import open_receipt
from quantlib.steps.rounding import NOT_WITHOUT_TEXT, round_model
from quantlib.steps.texts import input_of, vocabulary_of
from quantlib.steps.windows import read_windows
from quantlib.store import Receipt, StepOutput, Store, commit_step
from quantlib.text.tokenizer import load_tokenizer

STEP = "validate"
LIKENESS_STEP = "likeness"
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

    The receipt's facts are the ``verdict``, the ``reason``, the engine and the figures; a figure
    that is not finite is None there.

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
    limits = _limits(store, recipe, model, checkpoint)
    models = _models(store, recipe, limits, model, planned, checkpoint, device)
    linears = read_json(store, checkpoint, LINEARS_NAME)
    how = in_words(setting.checkpoint_dequantized, setting.checkpoint_emulated)

    likeness = _likeness(store, model, checkpoint)
    decode = partial(setting.tokenizer.decode, skip_special_tokens=False)

    def verdict(figures: Figures, answers: Sequence[Answer]) -> Gate:
        broken = likeness.facts["findings"] + answer_findings(answers, decode)
        gate = judge(figures, limits, linears, broken)
        return gate if how is None else replace(gate, reason=f"{gate.reason}; {how}")

    with Workers(setting.engine.name) as workers:
        first = recipe.validation.num_samples
        setting = setting.part(0, max(first, recipe.validation.max_samples))
        judgement = judge_in_rounds(store, setting, models, workers, first, verdict)
    gate, figures = judgement.gate, judgement.figures

    def work(output: StepOutput) -> None:
        evaluation = evaluation_of(store, judgement, models)
        output.add_json(EVALUATION_NAME, evaluation)
        output.facts = {
            "verdict": gate.outcome,
            "reason": gate.reason,
            "engine": setting.engine.name,
            "engine_version": setting.engine.version,
            "device": evaluation["device"],
            **{name: _finite_or_none(value) for name, value in figures.by_name().items()},
            **_drafting(evaluation["drafting"]),
        }

    parameters = {
        "fallback_reason": setting.engine.fallback_reason,
        "limits": asdict(limits),
        "no_rounding": models.no_rounding,
        "how": how,
    }
    inputs = {"model": model, "checkpoint": checkpoint, LIKENESS_STEP: likeness}
    inputs |= judgement.inputs()
    return commit_step(store, STEP, parameters, inputs, work, setting.numerics)


def _likeness(store: Store, model: Receipt, checkpoint: Receipt) -> Receipt:
    """Looks at what needs no engine, before one starts: files around the weights, and weights."""

    def work(output: StepOutput) -> None:
        original, published = (ReceiptSource(store, each) for each in (model, checkpoint))
        findings = file_findings(original, published)
        elsewhere = _MADE_ELSEWHERE in checkpoint.facts
        opened = open_receipt(store, model)[0]
        findings += weight_findings(opened, Checkpoint.open(published), rotated=elsewhere)
        output.facts["findings"] = findings

    inputs = {"model": model, "checkpoint": checkpoint}
    receipt = commit_step(store, LIKENESS_STEP, {}, inputs, work)
    for finding in receipt.facts["findings"]:
        print(f"broken: {finding}", file=sys.stderr, flush=True)
    return receipt


def read_evaluation(store: Store, validation: Receipt) -> dict[str, Any]:
    """The evaluation of a validate step, with the tokens per second of the runs behind it.

    Raises:
        StoreError: A file is missing or is not what its receipt says.
    """
    evaluation = read_json(store, validation, EVALUATION_NAME)
    halves = (input_of(store, validation, name) for name in ("reference", "comparison"))
    return with_throughput(store, evaluation, *halves)


def main(call: StepCall) -> None:
    store = call.store()
    recipe = recipe_from_text(call.text("recipe"))
    model, checkpoint = call.receipt("model"), call.receipt("checkpoint")
    planned = call.receipt("plan")
    receipt = validate(store, recipe, model, planned, checkpoint, call.text("device"), call.gpus())
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
    streamed = section.reference == "streamed"
    tokenizer = load_tokenizer(source)
    return Setting(
        engine=engine,
        device=device,
        dtype=dtype,
        windows=read_windows(store, windowed),
        windowed=windowed,
        tokenizer=tokenizer,
        prompts=section.prompts,
        **_questions(section, source, adapter, tokenizer, original),
        max_new_tokens=section.max_new_tokens,
        numerics=numerics(resolve_device(device), getattr(torch, dtype)),
        tensor_parallel_size=gpus,
        dequantized=dequantized_source_reason(source, engine.name, device, streamed=streamed),
        checkpoint_dequantized=_not_as_served(recipe, checkpoint, adapter, engine.name, device),
        checkpoint_emulated=None
        if _MADE_ELSEWHERE in checkpoint.facts
        else emulated_checkpoint_reason(recipe.quantization, adapter, engine.name, device),
        cached=recipe.quantization.cache is not None
        and cache_cpu_problem(recipe.quantization, adapter) is None,
        renamed=adapter.layout.renamed,
        drafts=adapter.drafts and not streamed,
        streamed=adapter.layout.model_dump_json() if streamed else None,
        original_head=_original_head(original, adapter, checkpoint),
    )


def _questions(
    section: ValidationSection,
    source: ReceiptSource,
    adapter: BaseModelAdapter,
    tokenizer: Tokenizer,
    original: Checkpoint,
) -> dict[str, Any]:
    """The questions that the model has an embedding and positions for, and how long answers are.

    None where the original is read block by block, which does not answer.
    """
    tokens = 0 if section.reference == "streamed" else section.answer_tokens
    questions = rendered_questions(source) if tokens else ()
    ids = [tokenizer.encode(question, add_special_tokens=False).ids for question in questions]
    vocabulary = vocabulary_of(original, adapter)
    known = vocabulary is None or all(max(each) < vocabulary for each in ids)
    longest = max(map(len, ids), default=0)
    positions = adapter.text_config.get("max_position_embeddings") or longest + tokens
    tokens = min(tokens, positions - longest)
    if not known or tokens <= 0:
        return {}
    return {"questions": questions, "answer_tokens": tokens}


def _limits(store: Store, recipe: Recipe, model: Receipt, checkpoint: Receipt) -> Limits:
    """What the checkpoint is held against."""
    original, _ = open_receipt(store, model)
    parameters = sum(math.prod(info.shape) for info in original.tensors.values())
    section, thresholds = recipe.quantization, recipe.validation.thresholds
    if _MADE_ELSEWHERE in checkpoint.facts:
        return limits_for(thresholds, checkpoint.facts["precision"], parameters, None)
    precision = precision_of(section.stated_schemes().values())
    return limits_for(thresholds, precision, parameters, usual_factor(section))


def _models(
    store: Store,
    recipe: Recipe,
    limits: Limits,
    model: Receipt,
    planned: Receipt,
    checkpoint: Receipt,
    device: str,
) -> Models:
    """What is compared; the model rounded to nearest is made where it is looked at."""
    if _MADE_ELSEWHERE in checkpoint.facts:
        return Models(model, checkpoint, no_rounding="the checkpoint was made elsewhere")
    if limits.times_rounding is None:
        return Models(model, checkpoint)
    rounded = round_model(store, recipe, model, planned, device)
    return Models(model, checkpoint, rounded, NOT_WITHOUT_TEXT if rounded is None else None)


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
