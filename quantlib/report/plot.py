"""What charts have in common: an area with two axes, which a template draws, and their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantlib.report.text import power_of_ten

MANTISSAS = (1, 2, 5)
"""What labels of an axis begin with."""

_LEAST_SPAN = 5.0  # holds two of 1, 2, 5, 10, ... wherever it starts
_MOST_DECADES_SUBDIVIDED = 2.2


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Plot:
    """A chart's axes, in user units with the origin at the top left.

    Attributes:
        width: Of the drawing.
        height: Of the drawing.
        left: Of the plot area, as ``right``, ``top`` and ``bottom`` are.
        right: See ``left``.
        top: See ``left``.
        bottom: See ``left``.
        x_ticks: Labels of the horizontal axis.
        y_ticks: Labels of the vertical axis.
    """

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def log_domain(values: Sequence[float]) -> tuple[float, float]:
    """Ends of a logarithmic axis: a little wider than the values, at least a factor of 5 apart.

    Args:
        values: Positive and finite, one at least.
    """
    lowest, highest = min(values) / 1.2, max(values) * 1.2
    widen = math.sqrt(max(_LEAST_SPAN * lowest / highest, 1.0))
    return lowest / widen, highest * widen


def log_ticks(lowest: float, highest: float) -> list[tuple[float, str]]:
    """Values of a logarithmic axis that have labels, and these: 1, 2, 5, 10, or decades of many."""
    few_decades = math.log10(highest / lowest) <= _MOST_DECADES_SUBDIVIDED
    ticks = []
    for power in range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1):
        for mantissa in MANTISSAS if few_decades else (1,):
            value = mantissa * 10.0**power
            if lowest <= value <= highest:
                ticks.append((value, _tick_text(mantissa, power)))
    return ticks


def names_apart(
    points: Sequence[tuple[float, float]], width: float, line: float
) -> tuple[float, ...]:
    """Heights of names beside points, such that none covers another.

    Args:
        points: Where they are, as ``(x, y)``.
        width: Points that are further apart than that have names beside each other.
        line: Least distance of names above each other.

    Returns:
        Of each point its name's y, in the order of the points.
    """
    placed: dict[int, float] = {}
    for index in sorted(range(len(points)), key=lambda each: points[each][::-1]):
        x, y = points[index]
        name_y = y - line / 2
        for other, other_y in placed.items():
            if abs(points[other][0] - x) < width and name_y < other_y + line:
                name_y = other_y + line
        placed[index] = name_y
    return tuple(round(placed[index], 1) for index in range(len(points)))


def _tick_text(mantissa: int, power: int) -> str:
    if -4 <= power < 4:
        return f"{mantissa * 10.0**power:.{max(-power, 0)}f}"
    return power_of_ten(power) if mantissa == 1 else f"{mantissa}·{power_of_ten(power)}"
