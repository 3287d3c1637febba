"""The numbers of a comparison as a reader wants them; shared by the page and the terminal."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from quantlib.report.compare import Comparison, Figure
from quantlib.report.method import ForeignMethod
from quantlib.report.run_reports import Run, short_digest
from quantlib.report.text import (
    ABSENT,
    change,
    duration,
    integer,
    mebibytes,
    percent,
    plural,
    significant,
    size,
)


@dataclass(frozen=True)
class Cell:
    """What a table says of one run.

    Attributes:
        value: The number.
        beside: What it is compared with; may be empty.
    """

    value: str
    beside: str = ""


@dataclass(frozen=True)
class Row:
    """One line of a table, a cell for each run."""

    name: str
    cells: tuple[Cell, ...]


def figure_rows(comparison: Comparison) -> list[Row]:
    """What was measured; cells of runs that were not validated are empty."""
    figures = comparison.figures
    errors = Figure(
        "error",
        tuple(statistics.fmean(e.values()) if e else None for e in comparison.block_errors),
    )
    kind = "Output" if comparison.measure == "relative_error" else "Weight"

    def original(index: int) -> str:
        value = figures["perplexity_original"].values[index]
        of_original = change(figures["perplexity_increase"].values[index])
        return "" if value is None else f"{of_original} to the original's {significant(value)}"

    def deviation(index: int) -> str:
        value = figures["kl_standard_error"].values[index]
        return "" if value is None else f"± {significant(value, 2)}"

    def ratio(index: int) -> str:
        return f"{comparison.runs[index].report.sizes.ratio:.2f}\N{MULTIPLICATION SIGN} smaller"

    def of_linears(index: int) -> str:
        value = figures["linear_bits"].values[index]
        return "" if value is None else f"{_three_digits(value)} of quantized linears"

    def of_fastest(index: int) -> str:
        factor = figures["seconds"].factor(index)
        if factor is None:
            return ""
        return "the fastest" if factor == 1 else f"{factor:.2f} times the fastest's"

    return [
        Row("Verdict", tuple(Cell(_verdict(run)) for run in comparison.runs)),
        _row("Perplexity", figures["perplexity"], significant, original),
        _row("Mean KL divergence, nats", figures["kl_mean"], _three_digits, deviation),
        _row("Same top token", figures["top1_agreement"], percent, relative=False),
        _row(
            f"{kind} error of linears, mean",
            errors,
            _three_digits,
            relative=not comparison.unlike_errors,
        ),
        _row("Weights", figures["bytes"], lambda v: size(int(v)), ratio),
        _row("Bits per weight", figures["bits"], _three_digits, of_linears, relative=False),
        _row("Time to quantize", figures["seconds"], duration, of_fastest, relative=False),
        _row("Peak memory", figures["peak_mib"], mebibytes),
        _row("Tokens per second", figures["tokens_per_second"], _three_digits),
    ]


def _verdict(run: Run) -> str:
    return run.report.verdict.outcome.replace("_", " ")


def _three_digits(value: float) -> str:
    return significant(value, 3)


def _row(
    name: str,
    figure: Figure,
    number: Callable[[float], str],
    beside: Callable[[int], str] = lambda _: "",
    *,
    relative: bool = True,
) -> Row:
    cells = []
    for index, value in enumerate(figure.values):
        if value is None:
            cells.append(Cell(ABSENT))
            continue
        said = [beside(index)]
        if relative and (relation := figure.change(index)) is not None:
            said.append(f"{change(relation)} to A" if relation else "as A")
        cells.append(Cell(number(value), ", ".join(filter(None, said))))
    return Row(name, tuple(cells))


def description_rows(comparison: Comparison) -> list[Row]:
    """What was run."""
    return [
        Row(name, tuple(Cell(*value(run)) for run in comparison.runs))
        for name, value in _DESCRIPTIONS.items()
    ]


def _method(run: Run) -> tuple[str, str]:
    method = run.report.method
    if isinstance(method, ForeignMethod):
        return "made elsewhere", ""
    return method.quantizer, f"after {method.outlier_suppression}" * bool(
        method.outlier_suppression
    )


def _scheme(run: Run) -> tuple[str, str]:
    method = run.report.method
    if isinstance(method, ForeignMethod):
        return method.words, ""
    return method.scheme, method.details


def _blocks(run: Run) -> tuple[str, str]:
    model = run.report.model
    return f"{len(model.quantized_blocks)} of {model.blocks}", ""


def _text(text: Any) -> tuple[str, str]:
    if text is None:
        return ABSENT, ""
    return text.source, f"{integer(text.tokens)} tokens, {short_digest(text.digest)}"


def _engine(run: Run) -> tuple[str, str]:
    made = run.report.evaluation
    return (ABSENT, "") if made is None else (f"{made.engine} {made.engine_version}", made.device)


_DESCRIPTIONS: dict[str, Callable[[Run], tuple[str, str]]] = {
    "Model": lambda run: (run.report.model.name, short_digest(run.report.model.digest)),
    "Method": _method,
    "Scheme": _scheme,
    "Format": lambda run: (getattr(run.report.method, "format", ABSENT), ""),
    "Keys and values": lambda run: (getattr(run.report.method, "kv_cache", "") or ABSENT, ""),
    "Quantized blocks": _blocks,
    "Calibration text": lambda run: _text(run.report.calibration),
    "Held-out text": lambda run: _text(run.report.evaluation and run.report.evaluation.text),
    "Judged by": _engine,
    "Checkpoint": lambda run: (short_digest(run.report.provenance.checkpoint_digest), ""),
}


def change_rows(comparison: Comparison) -> list[Row]:
    """Fields of the recipes that differ."""
    return [
        Row(field, tuple(Cell(_setting(value)) for value in values))
        for field, values in comparison.changes.items()
    ]


def _setting(value: Any) -> str:
    return ABSENT if value is None else value if isinstance(value, str) else json.dumps(value)


def left_out_note(comparison: Comparison) -> str:
    """Says which linears the errors leave out; empty where there are none."""
    if not comparison.left_out:
        return ""
    return f"{plural(comparison.left_out, 'linear')} not quantized in every run left out."


def error_table(comparison: Comparison) -> list[tuple[int, Sequence[float | None]]]:
    """Each block with the error of each run."""
    blocks = sorted({block for errors in comparison.block_errors for block in errors})
    return [(block, [errors.get(block) for errors in comparison.block_errors]) for block in blocks]
