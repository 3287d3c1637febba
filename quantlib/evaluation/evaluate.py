"""Judges a checkpoint on as much text as it takes to tell, and puts the evaluation together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantlib.evaluation.answers import Answer
from quantlib.evaluation.drafting import drafting_of
from quantlib.evaluation.figures import Compared, Figures, summarize
from quantlib.evaluation.gate import Gate
from quantlib.evaluation.job import Drafted
from quantlib.evaluation.process import Workers
from quantlib.evaluation.runs import (
    ANSWERS_NAME,
    COMPLETIONS_NAME,
    PROBES_NAME,
    read_comparison,
    run_checkpoint,
    run_original,
    run_rounding,
)
from quantlib.evaluation.setting import Setting
from quantlib.evaluation.spread import spread_of
from quantlib.store import Receipt, Store
from quantlib.text.windows import Windows


@dataclass(frozen=True)
class Models:
    """What is compared.

    Attributes:
        original: The fetch step's receipt.
        checkpoint: The merge step's receipt, or the adopt step's.
        rounded: The merge step's receipt of the original rounded to nearest in the checkpoint's
            scheme; None where that is not looked at.
        no_rounding: Why it is not, where there is something to say of it.
    """

    original: Receipt
    checkpoint: Receipt
    rounded: Receipt | None = None
    no_rounding: str | None = None


@dataclass(frozen=True)
class Judgement:
    """What came of all rounds.

    Attributes:
        setting: On the windows that were read.
        gate: The last round's verdict.
        figures: On all windows.
        compared: The checkpoint, at every position.
        references: Of each round, the original's half.
        comparisons: The checkpoint's.
        roundings: Plain rounding's.
    """

    setting: Setting
    gate: Gate
    figures: Figures
    compared: Compared
    references: tuple[Receipt, ...]
    comparisons: tuple[Receipt, ...]
    roundings: tuple[Receipt, ...]

    def inputs(self) -> dict[str, Receipt]:
        """The receipts that it rests on, by name; those of the first round have no number."""
        rows = {
            "reference": self.references,
            "comparison": self.comparisons,
            "rounding": self.roundings,
        }
        return {
            name if number == 1 else f"{name} {number}": receipt
            for name, receipts in rows.items()
            for number, receipt in enumerate(receipts, start=1)
        }


def judge_in_rounds(
    store: Store,
    setting: Setting,
    models: Models,
    workers: Workers,
    first: int,
    verdict: Callable[[Figures, Sequence[Answer]], Gate],
) -> Judgement:
    """Judges on some windows, and on twice as many while they do not tell.

    Every round reads the windows that are new in it alone.

    Args:
        store: Where the steps' files are.
        setting: With all windows that may be read.
        models: What is compared.
        workers: Of the setting's engine.
        first: Windows of the first round.
        verdict: Holds figures against limits, and looks at answers.

    Raises:
        QuantlibError: An engine failed.
    """
    references: list[Receipt] = []
    comparisons: list[Receipt] = []
    roundings: list[Receipt] = []
    compared: Compared | None = None
    rounding: np.ndarray | None = None
    for start, stop in rounds(first, len(setting.windows.tokens)):
        part = setting.part(start, stop)
        references.append(run_original(store, part, models.original, workers))
        if models.rounded is not None:
            found = run_rounding(store, part, references[-1], models.rounded, workers)
            roundings.append(found)
            kl = read_comparison(store, found).kl
            rounding = kl if rounding is None else np.concatenate([rounding, kl])
        comparisons.append(run_checkpoint(store, part, references[-1], models.checkpoint, workers))
        new = read_comparison(store, comparisons[-1])
        compared = new if compared is None else compared + new
        read = setting.part(0, stop)
        figures = summarize(compared, read.windows.predicted, rounding)
        answers = _answers(store, setting, references[0], comparisons[0])
        gate = verdict(figures, answers)
        if gate.outcome != "inconclusive":
            break
    assert compared is not None
    return Judgement(
        read,
        gate,
        figures,
        compared,
        tuple(references),
        tuple(comparisons),
        tuple(roundings),
    )


def _answers(
    store: Store, setting: Setting, reference: Receipt, comparison: Receipt
) -> list[Answer]:
    """What both models answered in the first round."""
    if not setting.questions:
        return []
    answered = (_read(store, receipt, ANSWERS_NAME) for receipt in (reference, comparison))
    return [
        Answer(question, original, quantized, setting.answer_tokens)
        for question, original, quantized in zip(setting.questions, *answered, strict=True)
    ]


def rounds(first: int, most: int) -> Iterator[tuple[int, int]]:
    """Where the windows of each round start and stop: as many in all as twice those before."""
    start, stop = 0, min(first, most)
    while start < stop:
        yield start, stop
        start, stop = stop, min(2 * stop, most)


def evaluation_of(store: Store, judgement: Judgement, models: Models) -> dict[str, Any]:
    """The evaluation; :func:`quantlib.evaluation.runs.with_throughput` adds tokens per second.

    Args:
        store: Where the steps' files are.
        judgement: What came of all rounds.
        models: What was compared.
    """
    setting, figures = judgement.setting, judgement.figures
    reference, comparison = judgement.references[0], judgement.comparisons[0]
    facts = comparison.facts
    drafted = facts.get("drafted")
    originals = [None] * len(setting.prompts)
    if setting.streamed is None:
        originals = _read(store, reference, COMPLETIONS_NAME)
    completions = _read(store, comparison, COMPLETIONS_NAME)
    decode = setting.tokenizer.decode
    return {
        "engine": setting.engine.name,
        "engine_version": setting.engine.version,
        "device": facts["device"],
        "fallback_reason": setting.engine.fallback_reason,
        "dequantized_reason": setting.dequantized,
        "checkpoint_dequantized_reason": setting.checkpoint_dequantized,
        "checkpoint_emulated_reason": setting.checkpoint_emulated,
        "original_streamed": None if setting.streamed is None else reference.facts["numerics"],
        "text": _text(setting.windows),
        "original": {"perplexity": figures.perplexity_original, "tokens_per_second": None},
        "quantized": {"perplexity": figures.perplexity_quantized, "tokens_per_second": None},
        "kl_mean": figures.kl.value,
        "kl_standard_error": figures.kl.error,
        "kl_method": (
            f"exact, over the whole vocabulary of {facts['vocabulary']} tokens, at each of the "
            f"{judgement.compared.kl.shape[1]} positions of a window that a token follows"
            f"{_left_out(setting.windows)}; standard error over windows; {facts['numerics']}"
        ),
        "top1_agreement": figures.top1.value,
        "drafting": None
        if drafted is None
        else drafting_of(Drafted(**reference.facts["drafted"]), Drafted(**drafted)),
        "probes": [
            {"window": window, "position": position, "token": token}
            for window, position, token in _read(store, comparison, PROBES_NAME)
        ],
        "generations": [
            {
                "prompt": prompt,
                "original": None if original is None else decode(original),
                "quantized": decode(quantized),
            }
            for prompt, original, quantized in zip(
                setting.prompts, originals, completions, strict=True
            )
        ],
        "rounding": _rounding(figures, models),
        "spread": spread_of(judgement.compared.kl, setting.windows, setting.tokenizer),
        "gate": judgement.gate.to_dict(),
    }


def _rounding(figures: Figures, models: Models) -> dict[str, Any] | None:
    if figures.rounding_kl is not None:
        found = figures.rounding_kl
        return {"kl_mean": found.value, "kl_standard_error": found.error}
    return {"absent": models.no_rounding} if models.no_rounding else None


def _read(store: Store, receipt: Receipt, name: str) -> Any:
    return json.loads(bytes(store.read(receipt.path(name))))


def _text(windows: Windows) -> Mapping[str, Any]:
    """The held-out text as it stands in the evaluation."""
    count, sequence_length = windows.tokens.shape
    return windows.account | {
        "windows": count,
        "sequence_length": sequence_length,
        "tokens": count * sequence_length,
    }


def _left_out(windows: Windows) -> str:
    """What is not counted, in words."""
    if windows.predicted.all():
        return ""
    count = int((~windows.predicted).sum())
    return f" ({count} of them left out, which hold what stands between documents)"
