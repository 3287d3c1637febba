"""Geometry of the chart of errors over blocks; the template draws it as SVG."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from quantlib.report.model import LinearError
from quantlib.report.plot import MANTISSAS, Plot, Tick, log_domain, log_ticks
from quantlib.report.text import significant

_MARGIN = {"left": 56.0, "right": 12.0, "top": 28.0, "bottom": 44.0}
_PIXELS_PER_X_TICK = 42

Measure = Literal["relative_error", "relative_weight_error"]


@dataclass(frozen=True)
class Mark:
    """What is to be drawn: an error in a block, as a point of a line."""

    line: str
    block: int
    error: float
    raised: bool = False


@dataclass(frozen=True)
class Point:
    """One linear of one block."""

    x: float
    y: float
    title: str
    raised: bool


@dataclass(frozen=True)
class Series:
    """One line over the blocks: the linears of one name, or a run.

    Attributes:
        index: Decides colour and marker.
        line: Its name.
        segments: Points of consecutive blocks; a line joins those of one segment.
    """

    index: int
    line: str
    segments: tuple[tuple[Point, ...], ...]


@dataclass(frozen=True)
class Band:
    """Consecutive blocks that were not quantized."""

    x: float
    width: float
    text: str


@dataclass(frozen=True)
class ErrorChart(Plot):
    """Everything that is drawn.

    Attributes:
        radius: Of a marker.
        bands: Blocks that were not quantized.
        series: The lines.
    """

    radius: float
    bands: tuple[Band, ...]
    series: tuple[Series, ...]


def measure_of(linears: Iterable[LinearError]) -> Measure:
    """What to chart: the output error where the method knows it, else the weight error."""
    known = any(record.relative_error is not None for record in linears)
    return "relative_error" if known else "relative_weight_error"


def error_chart(
    linears: Sequence[LinearError],
    blocks: int,
    quantized_blocks: Iterable[int],
    width: float,
    height: float,
) -> ErrorChart | None:
    """Lays out the errors over the blocks, on a logarithmic scale.

    The experts of a block are one point, their median. Errors of zero are drawn at the lower end of
    the scale, errors that are no finite number at the upper end.

    Args:
        linears: The records; those without the charted measure are left out.
        blocks: How many blocks the model has.
        quantized_blocks: Which of them were quantized; the others are marked.
        width: Of the drawing.
        height: Of the drawing.

    Returns:
        None where there is no error to draw.
    """
    measure = measure_of(linears)
    values: dict[tuple[str, int], list[float]] = {}
    raised = set()
    for record in linears:
        place = (record.line, record.block)
        if (value := getattr(record, measure)) is not None:
            values.setdefault(place, []).append(value)
        if record.damping_rose:
            raised.add(place)
    marks = [
        Mark(*place, statistics.median(of_experts), place in raised)
        for place, of_experts in values.items()
    ]
    return lay_out(marks, blocks, quantized_blocks, width, height)


def lay_out(
    marks: Sequence[Mark],
    blocks: int,
    quantized_blocks: Iterable[int],
    width: float,
    height: float,
) -> ErrorChart | None:
    """Lays out lines of errors over the blocks, one per name; see :func:`error_chart`."""
    positive = [mark.error for mark in marks if math.isfinite(mark.error) and mark.error > 0]
    if not positive:
        return None
    lowest, highest = log_domain(positive)
    left, right = _MARGIN["left"], width - _MARGIN["right"]
    top, bottom = _MARGIN["top"], height - _MARGIN["bottom"]
    band = (right - left) / blocks

    def x_of(block: float) -> float:
        return round(left + (block + 0.5) * band, 2)

    def y_of(value: float) -> float:
        value = highest if not math.isfinite(value) else max(value, lowest)
        share = math.log(value / lowest) / math.log(highest / lowest)
        return round(bottom - share * (bottom - top), 2)

    points: dict[str, dict[int, Point]] = {}
    for mark in marks:
        points.setdefault(mark.line, {})[mark.block] = Point(
            x=x_of(mark.block),
            y=y_of(mark.error),
            title=f"block {mark.block}, {mark.line}: {significant(mark.error, 3)}",
            raised=mark.raised,
        )
    return ErrorChart(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        radius=round(min(max(band * 0.13, 1.5), 3.2), 2),
        x_ticks=tuple(
            Tick(x_of(block), str(block))
            for block in range(0, blocks, _block_step(blocks, right - left))
        ),
        y_ticks=tuple(Tick(y_of(value), text) for value, text in log_ticks(lowest, highest)),
        bands=tuple(
            Band(round(left + first * band, 2), round((last - first + 1) * band, 2), text)
            for first, last, text in _exact_runs(blocks, quantized_blocks)
        ),
        series=tuple(
            Series(index, line, _segments(of_block))
            for index, (line, of_block) in enumerate(points.items())
        ),
    )


@dataclass(frozen=True)
class LinearSummary:
    """The linears of one name over all blocks and experts.

    Attributes:
        index: As in :class:`Series`.
        error_median: Of the output error; None where the method looks at no inputs.
        worst: The record with the largest charted error.
        dampings: Smallest and largest damping used; None without a Hessian.
        raised: In how many blocks the first damping was too little.
    """

    index: int
    linear: str
    count: int
    error_median: float | None
    weight_error_median: float
    worst: LinearError
    dampings: tuple[float, float] | None
    raised: int


def summarize(linears: Sequence[LinearError]) -> tuple[LinearSummary, ...]:
    """One row per name of a linear, in the order of the records."""
    measure = measure_of(linears)
    by_name: dict[str, list[LinearError]] = {}
    for record in linears:
        by_name.setdefault(record.line, []).append(record)
    rows = []
    for index, (linear, records) in enumerate(by_name.items()):
        errors = [record.relative_error for record in records if record.relative_error is not None]
        dampings = [record.damping for record in records if record.damping is not None]
        rows.append(
            LinearSummary(
                index=index,
                linear=linear,
                count=len(records),
                error_median=statistics.median(errors) if errors else None,
                weight_error_median=statistics.median(
                    record.relative_weight_error for record in records
                ),
                worst=max(records, key=lambda record: getattr(record, measure) or 0.0),
                dampings=(min(dampings), max(dampings)) if dampings else None,
                raised=sum(record.damping_rose for record in records),
            )
        )
    return tuple(rows)


def _block_step(blocks: int, pixels: float) -> int:
    """Blocks between two labels of the block axis: 1, 2, 5, 10, ..."""
    most = max(pixels / _PIXELS_PER_X_TICK, 1)
    power = 0
    while True:
        for mantissa in MANTISSAS:
            if blocks / (step := mantissa * 10**power) <= most:
                return step
        power += 1


def _exact_runs(blocks: int, quantized_blocks: Iterable[int]) -> list[tuple[int, int, str]]:
    """First and last block of every run of blocks that were not quantized, and how to call it."""
    quantized = set(quantized_blocks)
    runs: list[list[int]] = []
    for block in range(blocks):
        if block in quantized:
            continue
        if runs and runs[-1][1] == block - 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    return [
        (
            first,
            last,
            f"block {first} kept exact"
            if first == last
            else f"blocks {first} to {last} kept exact",
        )
        for first, last in runs
    ]


def _segments(of_block: dict[int, Point]) -> tuple[tuple[Point, ...], ...]:
    segments: list[list[Point]] = []
    previous: int | None = None
    for block in sorted(of_block):
        if previous is None or block != previous + 1:
            segments.append([])
        segments[-1].append(of_block[block])
        previous = block
    return tuple(map(tuple, segments))
