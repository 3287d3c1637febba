"""What values codes can take: the one place where a number becomes one that is stored.

A weight is a value times the scale of its group. Quantizers see a grid by two things alone: which
of its values is nearest, and which scale makes a range of weights fill it.

| type and bits | values | source |
|---|---|---|
| int, 2 to 8 | whole numbers, less a zero point | |
| float, 8 | E4M3, up to 448 | Micikevicius et al. 2022, FP8 formats for deep learning |
| float, 4 | E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 | OCP Microscaling Formats 1.0, 5.3.3 |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlib.schemes import WeightScheme

_EXPONENT_BITS = 0x7F800000
"""Those of a float32."""

_SHRINKS = tuple(1.0 - 0.05 * step for step in range(13))

# A group's largest weight becomes 6; or up to 4, whose neighbours are nearer (Cook et al. 2025,
# "Four over six"); or it is cut off.
_EXPANDED = (1.0, *(1.5 - 0.05 * step for step in range(10)), *_SHRINKS[1:9])


class Grid(ABC):
    """The values that the codes of a scheme stand for, before they are scaled.

    Attributes:
        steps: How many steps, or units, of a scale a range is wide that fills the grid.
    """

    @property
    @abstractmethod
    def steps(self) -> float:
        """The width of the grid, as :meth:`width` measures ranges."""

    @abstractmethod
    def width(self, low: Tensor, high: Tensor) -> Tensor:
        """How wide the range is that groups need which reach from ``low`` to ``high``."""

    @abstractmethod
    def zero_points(self, low: Tensor, scales: Tensor) -> Tensor:
        """The zero points of groups that start at ``low``, float32 whole numbers."""

    @abstractmethod
    def nearest(self, x: Tensor, zeros: Tensor, out: Tensor | None = None) -> Tensor:
        """The nearest values, ties to even.

        Args:
            x: float32, weights over their scales.
            zeros: Zero points, of a shape that can be broadcast to that of ``x``.
            out: Where the values are written; may be ``x`` itself.
        """

    @abstractmethod
    def encode(self, values: Tensor, zeros: Tensor) -> Tensor:
        """The codes of values as a ``QuantizedLinear`` holds them; may overwrite ``values``."""


@dataclass(frozen=True)
class IntegerGrid(Grid):
    """Whole numbers.

    Attributes:
        bits: Of a code.
        symmetric: Whether every zero point is the middle, ``2 ** (bits - 1)``.
    """

    bits: int
    symmetric: bool

    @property
    def steps(self) -> float:
        """15 for 4 bits."""
        return (1 << self.bits) - 1

    def width(self, low: Tensor, high: Tensor) -> Tensor:
        """Twice the largest magnitude where it is symmetric, else the range with zero in it."""
        if self.symmetric:
            return 2 * torch.maximum(-low, high)
        return high.clamp(min=0) - low.clamp(max=0)

    def zero_points(self, low: Tensor, scales: Tensor) -> Tensor:
        """The middle, or the code of zero where ``low`` has the code 0."""
        if self.symmetric:
            return torch.full_like(scales, float(1 << (self.bits - 1)))
        return (-low.clamp(max=0) / scales).round().clamp(0, self.steps)

    def nearest(self, x: Tensor, zeros: Tensor, out: Tensor | None = None) -> Tensor:
        """The nearest whole numbers whose sum with the zero point is a code."""
        values = torch.round(x, out=out)
        if self.symmetric:
            middle = 1 << (self.bits - 1)
            return values.clamp_(-middle, self.steps - middle)
        return values.add_(zeros).clamp_(0, self.steps).sub_(zeros)

    def encode(self, values: Tensor, zeros: Tensor) -> Tensor:
        """uint8, below ``2 ** bits``."""
        return values.add_(zeros).to(torch.uint8)


@dataclass(frozen=True)
class FloatGrid(Grid):
    """Floating point numbers of few bits, all finite.

    Attributes:
        lowest: The exponent of the smallest normal value.
        mantissa: Bits of a mantissa.
        largest: The largest value.
    """

    lowest: int
    mantissa: int
    largest: float

    @property
    def steps(self) -> float:
        """The largest value."""
        return self.largest

    def width(self, low: Tensor, high: Tensor) -> Tensor:
        """The largest magnitude."""
        return torch.maximum(-low, high)

    def zero_points(self, low: Tensor, scales: Tensor) -> Tensor:
        """There are none: 0."""
        return torch.zeros_like(scales)

    def nearest(self, x: Tensor, zeros: Tensor, out: Tensor | None = None) -> Tensor:
        """The nearest values, whose distances double with every power of two."""
        powers = x.abs().clamp_(min=2.0**self.lowest).view(torch.int32).bitwise_and_(_EXPONENT_BITS)
        distances = powers.view(torch.float32).mul_(2.0**-self.mantissa)
        values = torch.div(x, distances, out=out).round_().mul_(distances)
        return values.clamp_(-self.largest, self.largest)

    def encode(self, values: Tensor, zeros: Tensor) -> Tensor:
        """float8_e4m3fn, which holds the values of every such grid."""
        return values.to(torch.float8_e4m3fn)


_FLOATS = {
    8: FloatGrid(lowest=-6, mantissa=3, largest=448.0),
    4: FloatGrid(lowest=0, mantissa=1, largest=6.0),
}
"""By their bits."""


def grid_of(scheme: WeightScheme) -> Grid:
    """The grid of a scheme."""
    if scheme.type == "int":
        return IntegerGrid(scheme.bits, scheme.symmetric)
    return _FLOATS[scheme.bits]


def range_factors(scheme: WeightScheme) -> tuple[float, ...]:
    """Factors on the range of a group that a search for its scale tries; 1 is the first."""
    if scheme.scale == "e8m0":
        return (1.0, 2.0, 0.5)
    if scheme.type == "int":
        return _SHRINKS
    return _EXPANDED if scheme.bits == 4 else (1.0,)
