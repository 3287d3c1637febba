"""Geometry of the chart of how a divergence is spread; the template draws it as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantlib.report.evaluation import Spread
from quantlib.report.text import significant

WIDTH, HEIGHT = 1040.0, 120.0
_GAP = 0.2
_LEAST = 1.5
"""Height of a bar of nothing, so that it is seen."""


@dataclass(frozen=True)
class Bar:
    """One window of the text."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class SpreadChart:
    """The windows from the least to the largest divergence, and a line at the mean.

    Attributes:
        mean: Where the line is, from the top.
    """

    bars: tuple[Bar, ...]
    mean: float
    width: float = WIDTH
    height: float = HEIGHT


def spread_chart(spread: Spread) -> SpreadChart:
    """Lays out the divergence of each window, in user units with the origin at the top left."""
    order = sorted(range(len(spread.windows)), key=spread.windows.__getitem__)
    largest = max(max(spread.windows), 1e-12)
    step = WIDTH / len(order)

    def height(value: float) -> float:
        return max(_LEAST, HEIGHT * value / largest)

    bars = [
        Bar(
            x=round(place * step, 2),
            y=round(HEIGHT - height(spread.windows[window]), 2),
            width=round(step * (1 - _GAP), 2),
            height=round(height(spread.windows[window]), 2),
            title=f"window {window}: {significant(spread.windows[window], 3)} nats",
        )
        for place, window in enumerate(order)
    ]
    mean = HEIGHT - height(_mean(spread.windows))
    return SpreadChart(tuple(bars), round(mean, 2))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
