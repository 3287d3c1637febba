"""Geometry of the chart of checkpoints: their size against their divergence from the original."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantlib.report.plot import MANTISSAS, Plot, Tick, log_domain, log_ticks, names_apart
from quantlib.report.run_reports import Run
from quantlib.report.text import significant, size

_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 24.0, 28.0, 48.0
_PIXELS_PER_TICK = 90
_LEAST_SPAN = 0.1
"""Of the axis of sizes, as a share of the largest: what differs by less is near each other."""

_NAME, _LINE = 90.0, 17.0
"""Width of a name, and between two."""

_ERRORS = 2


@dataclass(frozen=True)
class Dot:
    """One checkpoint.

    Attributes:
        index: Decides colour and marker.
        low: Where the line of two standard errors ends below, as ``high`` above.
        high: See ``low``.
        name: Its letter, and its verdict where it did not pass.
        name_y: Where that stands, apart from those of its neighbours.
        end: Whether it stands to the left.
    """

    index: int
    x: float
    y: float
    low: float
    high: float
    name: str
    name_y: float
    end: bool
    title: str


@dataclass(frozen=True)
class SizeChart(Plot):
    """Everything that is drawn.

    Attributes:
        dots: The checkpoints that were judged.
    """

    dots: tuple[Dot, ...]


def size_chart(runs: Sequence[Run], width: float, height: float) -> SizeChart | None:
    """Lays out sizes to the right, and on a logarithmic scale KL divergences upwards.

    A divergence of nothing is drawn at the lower end. Lines of errors end where the scale does.

    Args:
        runs: In the order that decides their colours and markers.
        width: Of the drawing.
        height: Of the drawing.

    Returns:
        None where fewer than two have a finite divergence, or all have none.
    """
    shown = [
        (index, run, run.report.evaluation)
        for index, run in enumerate(runs)
        if run.report.evaluation is not None and math.isfinite(run.report.evaluation.kl_mean)
    ]
    positive = [made.kl_mean for _, _, made in shown if made.kl_mean > 0]
    if len(shown) < 2 or not positive:
        return None
    lowest, highest = log_domain(positive)
    first, last = _size_domain([run.report.sizes.bytes_quantized for _, run, _ in shown])
    left, right, top, bottom = _LEFT, width - _RIGHT, _TOP, height - _BOTTOM

    def x_of(value: float) -> float:
        return round(left + (right - left) * (value - first) / (last - first), 1)

    def y_of(value: float) -> float:
        value = min(max(value, lowest), highest)
        share = math.log(value / lowest) / math.log(highest / lowest)
        return round(bottom - share * (bottom - top), 1)

    places = [
        (x_of(run.report.sizes.bytes_quantized), y_of(made.kl_mean)) for _, run, made in shown
    ]
    dots = []
    for (index, run, made), (x, y), name_y in zip(
        shown, places, names_apart(places, _NAME, _LINE), strict=True
    ):
        error = _ERRORS * made.kl_standard_error if math.isfinite(made.kl_standard_error) else 0.0
        verdict = run.report.verdict.outcome
        dots.append(
            Dot(
                index=index,
                x=x,
                y=y,
                low=y_of(made.kl_mean - error),
                high=y_of(made.kl_mean + error),
                name=run.letter if verdict == "passed" else f"{run.letter} {verdict}",
                name_y=round(name_y + _LINE / 2 + 4, 1),
                end=x > (left + right) / 2,
                title=f"{run.letter} {run.name}: {size(run.report.sizes.bytes_quantized)}, "
                f"KL divergence {significant(made.kl_mean, 3)} nats, {verdict}",
            )
        )
    return SizeChart(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=tuple(Tick(x_of(at), text) for at, text in _size_ticks(first, last, right - left)),
        y_ticks=tuple(Tick(y_of(value), text) for value, text in log_ticks(lowest, highest)),
        dots=tuple(dots),
    )


def _size_domain(sizes: Sequence[int]) -> tuple[float, float]:
    """Ends of the axis of sizes: the sizes in its middle, with room beside them."""
    middle = (min(sizes) + max(sizes)) / 2
    half = 0.6 * max(max(sizes) - min(sizes), _LEAST_SPAN * max(sizes), 1)
    return max(0.0, middle - half), middle + half


def _size_ticks(first: float, last: float, pixels: float) -> list[tuple[float, str]]:
    """Sizes with labels: multiples of 1, 2 or 5 times a power of ten of one unit."""
    unit = 1024 ** max(0, int(math.log(last, 1024)))
    most = max(2.0, pixels / _PIXELS_PER_TICK)
    power = math.floor(math.log10((last - first) / unit / most))
    steps = (mantissa * 10.0**each for each in (power, power + 1) for mantissa in MANTISSAS)
    step = next(each for each in steps if (last - first) / unit / each <= most)
    name = size(unit).split()[1]
    return [
        (at * step * unit, f"{at * step:g} {name}")
        for at in range(math.ceil(first / unit / step), math.floor(last / unit / step) + 1)
    ]
