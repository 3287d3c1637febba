"""What charts have in common: an area with two axes, which a template draws."""

from __future__ import annotations

from dataclasses import dataclass


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
