"""Geometry of the chart of a search: bits per weight against the predicted KL divergence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantlib.report.plot import Plot, Tick, names_apart
from quantlib.report.text import power_of_ten, significant
from quantlib.search.outcome import Outcome, Point

WIDTH, HEIGHT = 720.0, 320.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, WIDTH - 16.0, 28.0, HEIGHT - 48.0
_LINE = 17.0
"""Between two names."""

_NAME = 190.0
"""Of the longest one."""

_MOST_DECADES = 4
"""Below the curve's worst point: what is better than that is as good as exact."""


@dataclass(frozen=True)
class Dot:
    """One choice.

    Attributes:
        kind: uniform or chosen.
        end: Whether its name goes to its left.
        name_y: Where its name stands, apart from those of its neighbours.
    """

    x: float
    y: float
    name: str
    title: str
    kind: str
    end: bool
    name_y: float = 0.0


@dataclass(frozen=True)
class SearchChart(Plot):
    """Everything that is drawn.

    Attributes:
        line: The points of the curve, as SVG has them.
        dots: The choices with names.
    """

    line: str
    dots: tuple[Dot, ...]


def search_chart(outcome: Outcome) -> SearchChart | None:
    """Lays out what a search found; None where it predicts no loss anywhere."""
    worst = max(point.kl for point in (*outcome.curve, outcome.chosen, *outcome.uniform))
    if worst <= 0:
        return None
    least = worst / 10**_MOST_DECADES
    far = 1.15 * max(point.bits for point in (outcome.chosen, *outcome.uniform))
    shown = [point for point in outcome.curve if point.kl > least and point.bits <= far]
    points = [*shown, outcome.chosen, *outcome.uniform]
    low = math.log10(max(least, min(point.kl for point in points if point.kl > 0) / 1.5))
    high = math.log10(worst * 1.5)
    first = min(point.bits for point in points)
    last = max(point.bits for point in points)
    span = (last - first) or 1.0
    first, last = first - 0.04 * span, last + 0.04 * span

    def x(bits: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * (bits - first) / (last - first), 1)

    def y(kl: float) -> float:
        share = (math.log10(kl) - low) / (high - low) if kl > 0 else 0.0
        return round(_BOTTOM - (_BOTTOM - _TOP) * min(max(share, 0.0), 1.0), 1)

    def dot(point: Point, kind: str) -> Dot:
        title = f"{point.name}: {significant(point.bits)} bits, KL {significant(point.kl)}"
        at = x(point.bits)
        return Dot(at, y(point.kl), point.name, title, kind, at > (_LEFT + _RIGHT) / 2)

    step = 0.25 if last - first < 2 else 0.5 if last - first < 4 else 1.0
    ticks = range(math.ceil(first / step), math.floor(last / step) + 1)
    return SearchChart(
        width=WIDTH,
        height=HEIGHT,
        left=_LEFT,
        right=_RIGHT,
        top=_TOP,
        bottom=_BOTTOM,
        line=" ".join(f"{x(point.bits)},{y(point.kl)}" for point in shown),
        dots=_with_names_apart(
            [
                *(dot(point, "uniform") for point in outcome.uniform),
                dot(outcome.chosen, "chosen"),
            ]
        ),
        x_ticks=tuple(Tick(x(at * step), f"{at * step:g}") for at in ticks),
        y_ticks=tuple(
            Tick(y(10.0**exponent), power_of_ten(exponent))
            for exponent in range(math.ceil(low), math.floor(high) + 1)
        ),
    )


def _with_names_apart(dots: Sequence[Dot]) -> tuple[Dot, ...]:
    heights = names_apart([(dot.x, dot.y) for dot in dots], _NAME, _LINE)
    return tuple(replace(dot, name_y=y) for dot, y in zip(dots, heights, strict=True))
