"""Runs a model once and commits what it gave: the original, the checkpoint, plain rounding."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from io import BytesIO
from typing import Any

import numpy as np

from quantlib.evaluation.drafting import LOG_NAME as DRAFTING_LOG_NAME
from quantlib.evaluation.drafting import let_draft
from quantlib.evaluation.figures import Compared
from quantlib.evaluation.job import (
    COMPARISON_NAME,
    HEAD_NAME,
    OUTCOME_NAME,
    REFERENCE_NAME,
    STREAMED,
    Drafted,
    Job,
    Outcome,
    StreamedJob,
)
from quantlib.evaluation.original import make_plain, make_servable
from quantlib.evaluation.process import Workers
from quantlib.evaluation.setting import Setting
from quantlib.models import Layout
from quantlib.runtime.progress import progress_bar
from quantlib.store import Receipt, StepOutput, Store, commit_step, materialize

REFERENCE_STEP = "reference"
COMPARISON_STEP = "comparison"
ROUNDING_STEP = "rounding"

COMPLETIONS_NAME = "completions.json"
ANSWERS_NAME = "answers.json"
PROBES_NAME = "probes.json"
THROUGHPUT_NAME = "throughput.json"
"""Tokens per second of the run that committed a step; no part of the receipt."""

LOG_NAME = "engine.log"
"""What the engine printed in that run; no part of the receipt either."""


def run_original(store: Store, setting: Setting, model: Receipt, workers: Workers) -> Receipt:
    """The original's half, committed by itself: every recipe of the same model shares it.

    Args:
        store: Where the steps' files are.
        setting: What it is judged by.
        model: The fetch step's receipt.
        workers: Of the setting's engine.

    Raises:
        QuantlibError: The engine failed.
    """

    def work(output: StepOutput) -> None:
        ran = "original", model, model.files
        outcome, drafted = _run(store, setting, ran, None, output, workers)
        (output.scratch / REFERENCE_NAME).rename(output.local(REFERENCE_NAME))
        output.add(REFERENCE_NAME, tensors=2)
        output.add_json(COMPLETIONS_NAME, outcome.completions)
        output.add_json(ANSWERS_NAME, outcome.answers)
        output.facts = {"device": outcome.device, "numerics": outcome.numerics}
        if drafted is not None:
            output.facts["drafted"] = asdict(drafted)

    inputs = {"model": model, "windows": setting.windowed}
    if setting.streamed is not None:
        parameters = setting.read | {"streamed": True, "transformers": version("transformers")}

        def stream(output: StepOutput) -> None:
            _stream(store, setting, model, output)

        return commit_step(store, REFERENCE_STEP, parameters, inputs, stream, setting.numerics)
    parameters = setting.parameters()
    if setting.dequantized:
        parameters["dequantized"] = True
    return commit_step(store, REFERENCE_STEP, parameters, inputs, work, setting.numerics)


def run_checkpoint(
    store: Store, setting: Setting, reference: Receipt, checkpoint: Receipt, workers: Workers
) -> Receipt:
    """A quantized model against the original's half, committed by itself: all limits share it.

    Args:
        store: Where the steps' files are.
        setting: What the original was judged by.
        reference: What :func:`run_original` gave.
        checkpoint: The merge step's receipt, or the adopt step's.
        workers: Of the setting's engine.

    Raises:
        QuantlibError: The engine failed, or the models do not have the same head.
    """

    def work(output: StepOutput) -> None:
        ran = "quantized", checkpoint, checkpoint.facts["checkpoint_files"]
        outcome, drafted = _run(store, setting, ran, reference, output, workers)
        _keep_comparison(output)
        output.add_json(COMPLETIONS_NAME, outcome.completions)
        output.add_json(ANSWERS_NAME, outcome.answers)
        output.add_json(PROBES_NAME, outcome.probes)
        output.facts = {
            "device": outcome.device,
            "numerics": outcome.numerics,
            "vocabulary": outcome.vocabulary,
        }
        if drafted is not None:
            output.facts["drafted"] = asdict(drafted)

    inputs = {"checkpoint": checkpoint, "reference": reference}
    parameters = _of_checkpoint(setting)
    return commit_step(store, COMPARISON_STEP, parameters, inputs, work, setting.numerics)


def run_rounding(
    store: Store,
    setting: Setting,
    reference: Receipt,
    rounded: Receipt,
    workers: Workers,
) -> Receipt:
    """Plain rounding against the original's half: all methods of a scheme share it.

    The receipt does not rest on the rounded checkpoint's, which is no part of how the judged one
    was made: its digest is a parameter.

    Args:
        store: Where the steps' files are.
        setting: What the original was judged by.
        reference: What :func:`run_original` gave.
        rounded: The merge step's receipt of the model rounded to nearest.
        workers: Of the setting's engine.

    Raises:
        QuantlibError: The engine failed.
    """
    alone = setting.reading_alone()

    def work(output: StepOutput) -> None:
        ran = "plain rounding", rounded, rounded.facts["checkpoint_files"]
        outcome, _ = _run(store, alone, ran, reference, output, workers)
        _keep_comparison(output)
        output.facts = {"device": outcome.device, "numerics": outcome.numerics}

    parameters = _of_checkpoint(alone) | {"rounded": rounded.facts["checkpoint_digest"]}
    inputs = {"reference": reference}
    return commit_step(store, ROUNDING_STEP, parameters, inputs, work, setting.numerics)


def read_comparison(store: Store, receipt: Receipt) -> Compared:
    """What :func:`run_checkpoint` or :func:`run_rounding` found at every position."""
    data = BytesIO(store.read(receipt.path(COMPARISON_NAME)))
    with np.load(data) as found:
        return Compared(**found)


def with_throughput(
    store: Store, evaluation: Mapping[str, Any], reference: Receipt, comparison: Receipt
) -> dict[str, Any]:
    """An evaluation with the tokens per second that the two runs noted beside their receipts."""
    merged = dict(evaluation)
    for name, receipt in (("original", reference), ("quantized", comparison)):
        path = f"{receipt.aside}/{THROUGHPUT_NAME}"
        if store.exists(path):
            noted = json.loads(bytes(store.read(path)))
            merged[name] = merged[name] | {"tokens_per_second": noted["tokens_per_second"]}
    return merged


def _keep_comparison(output: StepOutput) -> None:
    (output.scratch / COMPARISON_NAME).rename(output.local(COMPARISON_NAME))
    output.add(COMPARISON_NAME)


def _of_checkpoint(setting: Setting) -> dict[str, Any]:
    """What decides the predictions of a quantized model."""
    return setting.parameters() | {
        "dequantized": setting.checkpoint_dequantized is not None,
        "emulated": setting.checkpoint_emulated is not None,
        "cached": setting.cached,
    }


def _run(
    store: Store,
    setting: Setting,
    ran: tuple[str, Receipt, Iterable[str]],
    reference: Receipt | None,
    output: StepOutput,
    workers: Workers,
) -> tuple[Outcome, Drafted | None]:
    """Runs one model, by its name, and leaves the worker's files in the step's scratch folder."""
    name, model, files = ran
    folder = output.scratch / "model"
    for file in files:
        materialize(store, model.path(file), folder / file)
    dequantized = setting.dequantized if reference is None else setting.checkpoint_dequantized
    if dequantized:
        make_plain(folder, cached=reference is not None and setting.cached)
    reference_file, head_file = None, None
    if reference is None:
        make_servable(folder, setting.renamed)
    else:
        if setting.original_head is not None:
            head_file = output.scratch / HEAD_NAME
            setting.original_head.write(head_file)
        reference_file = output.scratch / REFERENCE_NAME
        materialize(store, reference.path(REFERENCE_NAME), reference_file)
    tokens = output.scratch / "tokens.npy"
    np.save(tokens, setting.windows.tokens)
    job = Job(
        engine=setting.engine.name,
        model=str(folder),
        device=setting.device,
        dtype=setting.dtype,
        tokens=str(tokens),
        prompts=[setting.tokenizer.encode(prompt).ids for prompt in setting.prompts],
        max_new_tokens=setting.max_new_tokens,
        reference=None if reference_file is None else str(reference_file),
        output=str(output.scratch),
        original_head=None if head_file is None else str(head_file),
        tensor_parallel_size=setting.tensor_parallel_size,
        questions=[
            setting.tokenizer.encode(question, add_special_tokens=False).ids
            for question in setting.questions
        ],
        answer_tokens=setting.answer_tokens,
    )
    label = f"{name} by {setting.engine.name}"
    output.gpus = setting.tensor_parallel_size
    with progress_bar(label, len(setting.windows.tokens), "windows") as advance:
        outcome = _follow(store, output, job, label, workers, advance)
    emulated = reference is not None and setting.checkpoint_emulated
    if setting.prompts and not dequantized and not emulated:  # as it is never served
        rate = {"tokens_per_second": outcome.tokens_per_second, "method": outcome.throughput_method}
        store.put_bytes(json.dumps(rate).encode(), f"{output.aside}/{THROUGHPUT_NAME}")
    drafted = None
    if setting.drafts:
        drafted = let_draft(
            job,
            label,
            workers,
            lambda log: store.put_file(log, f"{output.aside}/{DRAFTING_LOG_NAME}"),
        )
    return outcome, drafted


def _stream(store: Store, setting: Setting, model: Receipt, output: StepOutput) -> None:
    """Reads the original block by block; gives what an engine gives, without completions."""
    assert setting.streamed is not None
    tokens = output.scratch / "tokens.npy"
    np.save(tokens, setting.windows.tokens)
    job = StreamedJob(
        store=store.address,
        model=model.model_dump_json(by_alias=True),
        layout=setting.streamed,
        device=setting.device,
        tokens=str(tokens),
        output=str(output.scratch),
    )
    label, blocks = "original, block by block", Layout.model_validate_json(setting.streamed).blocks
    with Workers(STREAMED) as workers, progress_bar(label, blocks, "blocks") as advance:
        outcome = _follow(store, output, job, label, workers, advance)
    (output.scratch / REFERENCE_NAME).rename(output.local(REFERENCE_NAME))
    output.add(REFERENCE_NAME, tensors=2)
    output.facts = {"device": outcome.device, "numerics": outcome.numerics}


def _follow(
    store: Store,
    output: StepOutput,
    job: Job | StreamedJob,
    label: str,
    workers: Workers,
    advance: Callable[[int], None],
) -> Outcome:
    """Runs a job to its end, and keeps its log."""
    log = output.scratch / LOG_NAME
    kept_log = f"{output.aside}/{LOG_NAME}"
    try:
        address = store.full_address(kept_log)
        output.peak_bytes = workers.run(job, label, log, address, lambda: advance(1))
    finally:
        if log.exists():
            store.put_file(log, kept_log)
    return Outcome.read(output.scratch / OUTCOME_NAME)
