"""Runs side by side: what is compared, and whether the comparison is fair."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantlib.report.chart import measure_of
from quantlib.report.conclusion import Conclusion, conclude
from quantlib.report.method import ForeignMethod
from quantlib.report.model import LinearError, Report
from quantlib.report.run_reports import Run, short_digest

COMPARISON_SCHEMA = "quantlib/comparison/1"


@dataclass(frozen=True)
class Figure:
    """A number of each run.

    Attributes:
        name: As the JSON calls it.
        values: One per run; None where it is not known.
    """

    name: str
    values: tuple[float | None, ...]

    def change(self, index: int) -> float | None:
        """Relative to the first run; None for itself and where a value is not known."""
        first, value = self.values[0], self.values[index]
        return None if index == 0 or not first or value is None else value / first - 1

    def factor(self, index: int) -> float | None:
        """Over the least of the runs; None where fewer than two values are known."""
        known = [value for value in self.values if value is not None]
        value = self.values[index]
        if value is None or len(known) < 2 or not min(known):
            return None
        return value / min(known)


@dataclass(frozen=True)
class Comparison:
    """Runs and what can be said of them together.

    Attributes:
        runs: In the order in which they were given; the first is what others are compared with.
        figures: Numbers by name.
        unfair: Sentences on what makes figures of different runs incomparable.
        unlike_errors: The same of the errors of linears.
        block_errors: For each run, the mean error of a block's linears, by block.
        measure: Which error that is: relative_error or relative_weight_error.
        left_out: Linears that not all runs have quantized, which the errors leave out.
        changes: Recipe fields that differ, with the value in each run.
        conclusion: Which checkpoint to take, and why.
    """

    runs: tuple[Run, ...]
    figures: Mapping[str, Figure]
    unfair: tuple[str, ...]
    unlike_errors: tuple[str, ...]
    block_errors: tuple[Mapping[int, float], ...]
    measure: str
    left_out: int
    changes: Mapping[str, tuple[Any, ...]]
    conclusion: Conclusion

    @property
    def all_validated(self) -> bool:
        """Whether every run was compared with its original."""
        return all(run.report.evaluation is not None for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        """The comparison for machines."""
        return {
            "runs": [
                {
                    "letter": run.letter,
                    "name": run.name,
                    "method": run.report.method.model_dump(mode="json"),
                    "verdict": run.report.verdict.outcome,
                    "model_digest": run.report.provenance.model_digest,
                    "calibration_digest": run.report.provenance.calibration_digest,
                    "checkpoint_digest": run.report.provenance.checkpoint_digest,
                    "block_errors": self.block_errors[index],
                }
                | {name: figure.values[index] for name, figure in self.figures.items()}
                for index, run in enumerate(self.runs)
            ],
            "error_measure": self.measure,
            "unfair": self.unfair,
            "unlike_errors": self.unlike_errors,
            "changes": self.changes,
            "take": self.conclusion.take,
            "conclusion": self.conclusion.sentences,
        }


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Puts runs side by side.

    Args:
        runs: What :func:`quantlib.report.run_reports.read_runs` gave.
    """
    measure, common, left_out = _common_linears(runs)
    unfair = tuple(_unfair(runs))
    return Comparison(
        runs=tuple(runs),
        figures={
            name: Figure(name, tuple(value(run) for run in runs))
            for name, value in _FIGURES.items()
        },
        unfair=unfair,
        unlike_errors=tuple(_unlike_errors(runs, measure)),
        block_errors=tuple(_block_errors(run.report.linears, measure, common) for run in runs),
        measure=measure,
        left_out=left_out,
        changes=_changes(runs),
        conclusion=conclude(runs, fair=not unfair),
    )


def _of_evaluation(value: Callable[[Any], float | None]) -> Callable[[Run], float | None]:
    def figure(run: Run) -> float | None:
        evaluation = run.report.evaluation
        return None if evaluation is None else value(evaluation)

    return figure


_FIGURES: dict[str, Callable[[Run], float | None]] = {
    "perplexity_original": _of_evaluation(lambda e: e.original.perplexity),
    "perplexity": _of_evaluation(lambda e: e.quantized.perplexity),
    "perplexity_increase": _of_evaluation(lambda e: e.perplexity_increase),
    "kl_mean": _of_evaluation(lambda e: e.kl_mean),
    "kl_standard_error": _of_evaluation(lambda e: e.kl_standard_error),
    "top1_agreement": _of_evaluation(lambda e: e.top1_agreement),
    "tokens_per_second": _of_evaluation(lambda e: e.quantized.tokens_per_second),
    "bytes": lambda run: run.report.sizes.bytes_quantized,
    "bits": lambda run: run.report.sizes.bits,
    "linear_bits": lambda run: run.report.sizes.linear_bits,
    "seconds": lambda run: run.seconds,
    "peak_mib": lambda run: run.peak_mib,
}


def _unfair(runs: Sequence[Run]) -> list[str]:
    judged = [run for run in runs if run.report.evaluation is not None]
    found = [
        _parting(runs, lambda r: r.model.digest, "The original models differ", _model_of),
        _parting(
            judged,
            lambda r: r.evaluation and r.evaluation.text.digest,
            "They were judged on other held-out texts",
            lambda r: r.evaluation and _text_of(r.evaluation.text),
        ),
        _parting(judged, _engine_of, "They were judged by other engines", _engine_of),
    ]
    return [sentence for sentence in found if sentence]


def _unlike_errors(runs: Sequence[Run], measure: str) -> list[str]:
    """What errors are of: a model, outputs or weights, on a text, of weights as they were or not.

    A method that looks at inputs gives up some of the weights' error for less of the outputs': next
    to one that does not, its weights look worse than they are.
    """
    runs = [run for run in runs if run.report.linears]
    if other := _parting(
        runs,
        lambda r: r.model.digest,
        "Errors of linears cannot be compared, the original models differ",
        _model_of,
    ):
        return [other]
    if other := _parting(
        runs,
        lambda r: measure_of(r.linears),
        "Errors of linears cannot be compared, not every method knows those of outputs",
        lambda r: "of outputs" if measure_of(r.linears) == "relative_error" else "of weights",
    ):
        return [other]
    if measure == "relative_error":
        found = _parting(
            runs,
            lambda r: r.calibration and r.calibration.digest,
            "Errors of linears cannot be compared, they were measured on other texts",
            lambda r: r.calibration and _text_of(r.calibration),
        )
    else:
        found = _parting(
            runs,
            _suppression,
            "Errors of linears cannot be compared, the weights were transformed before",
            lambda r: _suppression(r) or "not transformed",
        )
    return [found] if found else []


def _suppression(report: Report) -> str | None:
    method = report.method
    return None if isinstance(method, ForeignMethod) else method.outlier_suppression


def _parting(
    runs: Sequence[Run],
    key: Callable[[Report], Any],
    what: str,
    words: Callable[[Report], Any],
) -> str | None:
    """A sentence on what runs do not share; None where they share it."""
    alike: dict[Any, list[Run]] = {}
    for run in runs:
        alike.setdefault(key(run.report), []).append(run)
    if len(alike) < 2:
        return None
    parts = (
        f"{', '.join(run.letter for run in group)}: {words(group[0].report)}"
        for group in alike.values()
    )
    return f"{what}: {'; '.join(parts)}."


def _model_of(report: Report) -> str:
    return f"{report.model.name} ({short_digest(report.model.digest)})"


def _text_of(text: Any) -> str:
    return f"{text.source}, {text.tokens:,} tokens ({short_digest(text.digest)})"


def _engine_of(report: Report) -> str | None:
    made = report.evaluation
    return None if made is None else f"{made.engine} {made.engine_version} on {made.device}"


def _common_linears(runs: Sequence[Run]) -> tuple[str, set[tuple[int, str]], int]:
    """Which error all runs know, the linears that all have quantized, and how many others."""
    linears = [run.report.linears for run in runs]
    known = all(record.relative_error is not None for of_run in linears for record in of_run)
    held = [{(record.block, record.linear) for record in of_run} for of_run in linears]
    common = set.intersection(*held)
    return (
        "relative_error" if known else "relative_weight_error",
        common,
        len(set.union(*held) - common),
    )


def _block_errors(
    linears: Sequence[LinearError], measure: str, common: set[tuple[int, str]]
) -> dict[int, float]:
    by_block: dict[int, list[float]] = {}
    for record in linears:
        if (record.block, record.linear) in common:
            by_block.setdefault(record.block, []).append(getattr(record, measure))
    return {block: statistics.fmean(by_block[block]) for block in sorted(by_block)}


def _changes(runs: Sequence[Run]) -> dict[str, tuple[Any, ...]]:
    recipes = [_flattened(run.report.recipe) for run in runs]
    fields = dict.fromkeys(field for recipe in recipes for field in recipe)
    values = {field: tuple(recipe.get(field) for recipe in recipes) for field in fields}
    return {
        field: of_runs
        for field, of_runs in values.items()
        if any(value != of_runs[0] for value in of_runs)
    }


def _flattened(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, dict):
            flat |= _flattened(inner, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = inner
    return flat
