"""Runs the original and the quantized model and puts the evaluation together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.writer import SafetensorsWriter
from quantlib.evaluation.choose_engine import EngineChoice
from quantlib.evaluation.drafting import LOG_NAME as DRAFTING_LOG_NAME
from quantlib.evaluation.drafting import drafting_of, let_draft
from quantlib.evaluation.gate import Figures
from quantlib.evaluation.job import (
    COMPARISON_NAME,
    HEAD_NAME,
    OUTCOME_NAME,
    REFERENCE_NAME,
    Drafted,
    Job,
    Outcome,
)
from quantlib.evaluation.original import make_plain, make_servable
from quantlib.evaluation.process import Workers
from quantlib.runtime.progress import progress_bar
from quantlib.store import LocalStore, Receipt, StepOutput, Store, commit_step
from quantlib.text.windows import Windows

REFERENCE_STEP = "reference"
COMPLETIONS_NAME = "completions.json"
THROUGHPUT_NAME = "throughput.json"
"""Tokens per second of the run that committed a step; no part of the receipt."""

LOG_NAME = "engine.log"
"""What the engine printed in that run; no part of the receipt either."""


@dataclass(frozen=True)
class OriginalHead:
    """The original's head, for a quantized model that has another.

    Attributes:
        checkpoint: The original.
        names: Of its tensors, by ``weight`` and ``bias``.
    """

    checkpoint: Checkpoint
    names: Mapping[str, str]

    def write(self, path: Path) -> None:
        """Writes it to a file of its own."""
        with SafetensorsWriter(path) as writer:
            for part, name in self.names.items():
                info = self.checkpoint.info(name)
                writer.add_pieces(part, info.dtype, info.shape, self.checkpoint.pieces(name))
            writer.finish()


@dataclass(frozen=True)
class Setting:
    """What two models are judged by.

    Attributes:
        engine: What runs them.
        device: auto, cpu or cuda.
        dtype: bfloat16 or float16.
        windows: The held-out text.
        windowed: Receipt of the windows.
        tokenizer: Of the models.
        prompts: To be completed by both.
        max_new_tokens: At most so many tokens per prompt.
        numerics: What decides how their predictions are rounded, besides the engine.
        tensor_parallel_size: Devices that share a model.
        dequantized: Why an original that is quantized is judged by what its weights stand for, and
            not as it is served; None where it is judged as it is.
        checkpoint_dequantized: The same of the quantized model.
        checkpoint_emulated: Why the quantized model is computed by emulation; None where it is not.
        cached: Whether a quantized model that is judged by its dequantized weights keeps keys and
            values in FP8 nevertheless.
        renamed: The names that vLLM knows for tensors that the original stores by others.
        drafts: Whether the model has layers that draft tokens.
        original_head: Where the quantized model's head is another; None where it is the same.
    """

    engine: EngineChoice
    device: str
    dtype: str
    windows: Windows
    windowed: Receipt
    tokenizer: Tokenizer
    prompts: tuple[str, ...]
    max_new_tokens: int
    numerics: Mapping[str, Any]
    tensor_parallel_size: int = 1
    dequantized: str | None = None
    checkpoint_dequantized: str | None = None
    checkpoint_emulated: str | None = None
    cached: bool = False
    renamed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    drafts: bool = False
    original_head: OriginalHead | None = None

    @property
    def text(self) -> dict[str, Any]:
        """The held-out text as it stands in the evaluation."""
        windows, sequence_length = self.windows.tokens.shape
        return {
            "source": self.windows.source,
            "digest": self.windows.digest,
            "windows": windows,
            "sequence_length": sequence_length,
            "tokens": windows * sequence_length,
            "content": self.windows.content,
            "read": self.windows.read,
            "opening": list(self.windows.opening),
        }

    def parameters(self) -> dict[str, Any]:
        """What decides a model's predictions, besides the model and the windows."""
        shared = self.tensor_parallel_size
        return {
            **({"tensor_parallel_size": shared} if shared > 1 else {}),
            **({"drafts": True} if self.drafts else {}),
            "engine": self.engine.name,
            "engine_version": self.engine.version,
            "device": self.device,
            "dtype": self.dtype,
            "prompts": list(self.prompts),
            "max_new_tokens": self.max_new_tokens,
        }


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
        outcome, drafted = _run(store, setting, model, model.files, None, output, workers)
        (output.scratch / REFERENCE_NAME).rename(output.local(REFERENCE_NAME))
        output.add(REFERENCE_NAME, tensors=2)
        output.add_json(COMPLETIONS_NAME, outcome.completions)
        output.facts = {"device": outcome.device, "numerics": outcome.numerics}
        if drafted is not None:
            output.facts["drafted"] = asdict(drafted)

    inputs = {"model": model, "windows": setting.windowed}
    parameters = setting.parameters()
    if setting.dequantized:
        parameters["dequantized"] = True
    return commit_step(store, REFERENCE_STEP, parameters, inputs, work, setting.numerics)


def run_quantized(
    store: Store,
    setting: Setting,
    reference: Receipt,
    checkpoint: Receipt,
    output: StepOutput,
    workers: Workers,
) -> tuple[Figures, dict[str, Any]]:
    """The quantized model against the original's half.

    Args:
        store: Where the steps' files are.
        setting: What the original was judged by.
        reference: What :func:`run_original` gave.
        checkpoint: The merge step's receipt.
        output: Of the step that this is part of.
        workers: Of the setting's engine.

    Returns:
        The figures, and the evaluation without the gate. Its tokens per second are None: see
        :func:`with_throughput`.

    Raises:
        QuantlibError: The engine failed, or the models do not have the same head.
    """
    names = checkpoint.facts["checkpoint_files"]
    outcome, drafted = _run(store, setting, checkpoint, names, reference, output, workers)
    with np.load(output.scratch / COMPARISON_NAME) as comparison:
        predicted = setting.windows.predicted
        figures = summarize(**comparison, predicted=predicted)
        positions = comparison["kl"].shape[1]
    originals = json.loads(bytes(store.read(reference.path(COMPLETIONS_NAME))))
    decode = setting.tokenizer.decode
    return figures, {
        "engine": setting.engine.name,
        "engine_version": setting.engine.version,
        "device": outcome.device,
        "fallback_reason": setting.engine.fallback_reason,
        "dequantized_reason": setting.dequantized,
        "checkpoint_dequantized_reason": setting.checkpoint_dequantized,
        "checkpoint_emulated_reason": setting.checkpoint_emulated,
        "text": setting.text,
        "original": {"perplexity": figures.perplexity_original, "tokens_per_second": None},
        "quantized": {"perplexity": figures.perplexity_quantized, "tokens_per_second": None},
        "kl_mean": figures.kl_mean,
        "kl_standard_error": figures.kl_standard_error,
        "kl_method": (
            f"exact, over the whole vocabulary of {outcome.vocabulary} tokens, at each of the "
            f"{positions} positions of a window that a token follows{_left_out(setting.windows)}; "
            f"standard error over windows; {outcome.numerics}"
        ),
        "top1_agreement": figures.top1_agreement,
        "drafting": None
        if drafted is None
        else drafting_of(Drafted(**reference.facts["drafted"]), drafted),
        "probes": [
            {"window": window, "position": position, "token": token}
            for window, position, token in outcome.probes
        ],
        "generations": [
            {"prompt": prompt, "original": decode(original), "quantized": decode(quantized)}
            for prompt, original, quantized in zip(
                setting.prompts, originals, outcome.completions, strict=True
            )
        ],
    }


def with_throughput(
    store: Store, evaluation: Mapping[str, Any], reference: Receipt, validation: Receipt
) -> dict[str, Any]:
    """An evaluation with the tokens per second that the two runs noted beside their receipts."""
    merged = dict(evaluation)
    for name, receipt in (("original", reference), ("quantized", validation)):
        path = f"{receipt.aside}/{THROUGHPUT_NAME}"
        if store.exists(path):
            noted = json.loads(bytes(store.read(path)))
            merged[name] = merged[name] | {"tokens_per_second": noted["tokens_per_second"]}
    return merged


def summarize(
    kl: np.ndarray,
    reference_nll: np.ndarray,
    candidate_nll: np.ndarray,
    same_top1: np.ndarray,
    predicted: np.ndarray,
) -> Figures:
    """The figures of a comparison.

    The standard error is that of the windows' means, since the positions of a window are not
    independent; of a single window, that of its positions.

    Args:
        kl: float32 ``[windows, positions]``, as are the others.
        reference_nll: Negative log likelihoods under the original.
        candidate_nll: Negative log likelihoods under the quantized model.
        same_top1: bool.
        predicted: bool; which positions count. All have to be finite.
    """
    divergences = kl.astype(np.float64)
    several = len(kl) > 1
    samples = divergences.mean(axis=1, where=predicted) if several else divergences[predicted]
    finite = np.isfinite(kl) & np.isfinite(reference_nll) & np.isfinite(candidate_nll)
    return Figures(
        perplexity_original=_perplexity(reference_nll[predicted]),
        perplexity_quantized=_perplexity(candidate_nll[predicted]),
        kl_mean=float(divergences.mean(where=predicted)),
        kl_standard_error=float(samples.std(ddof=1) / math.sqrt(len(samples))),
        top1_agreement=float(same_top1.mean(where=predicted)),
        not_finite=int((~finite).sum()),
    )


def _left_out(windows: Windows) -> str:
    """What is not counted, in words."""
    if windows.predicted.all():
        return ""
    count, words = int((~windows.predicted).sum()), " ".join(windows.opening)
    return f" ({count} of them left out, where a document begins with {words})"


def _perplexity(nll: np.ndarray) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(nll.mean(dtype=np.float64)))


def _run(
    store: Store,
    setting: Setting,
    model: Receipt,
    names: Iterable[str],
    reference: Receipt | None,
    output: StepOutput,
    workers: Workers,
) -> tuple[Outcome, Drafted | None]:
    """Runs one model and leaves the worker's files in the step's scratch folder."""
    folder = output.scratch / "model"
    for name in names:
        _materialize(store, model.path(name), folder / name)
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
        _materialize(store, reference.path(REFERENCE_NAME), reference_file)
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
    )
    label = f"{'original' if reference is None else 'quantized'} by {setting.engine.name}"
    log = output.scratch / LOG_NAME
    kept_log = f"{output.aside}/{LOG_NAME}"
    try:
        with progress_bar(label, len(setting.windows.tokens), "windows") as advance:
            address = store.full_address(kept_log)
            output.gpus = setting.tensor_parallel_size
            output.peak_bytes = workers.run(job, label, log, address, lambda: advance(1))
    finally:
        if log.exists():
            store.put_file(log, kept_log)
    outcome = Outcome.read(output.scratch / OUTCOME_NAME)
    emulated = reference is not None and setting.checkpoint_emulated
    if not dequantized and not emulated:  # as it is never served
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


def _materialize(store: Store, path: str, local: Path) -> None:
    local.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(store, LocalStore):
        local.symlink_to(store.local_path(path))
    else:
        store.export_file(path, local)
