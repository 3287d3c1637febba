"""What values codes can take: the one place where a number becomes one that is stored.

A weight is a value times the scale of its group. Quantizers see a grid by two things alone: which
of its values is nearest, and which scale makes a range of weights fill it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

_EXPONENT_BITS = 0x7F800000
"""Those of a float32."""


class Grid(ABC):
    """The values that the codes of a scheme stand for, before they are scaled.

    Attributes:
        steps: How many steps, or units, of a scale a range is wide that fills the grid.
    """

    @property
    @abstractmethod
    def steps(self) -> float:
        """The width of the grid, as :meth:`width` measures ranges."""

    @property
    def end(self) -> float:
        """A width that is too large for a scale of 1, where scales are powers of two."""
        return self.steps

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
        limit: What :attr:`end` is; None for the first number that would be rounded to one after the
            largest, if there were one.
    """

    lowest: int
    mantissa: int
    largest: float
    limit: float | None = None

    @property
    def steps(self) -> float:
        """The largest value."""
        return self.largest

    @property
    def end(self) -> float:
        """7 for E2M1, whose values go up to 6 in steps of 2."""
        if self.limit is not None:
            return self.limit
        return self.largest + 2.0 ** (math.frexp(self.largest)[1] - 2 - self.mantissa)

    def by_code(self) -> tuple[float, ...]:
        """The values of codes that are sign, exponent and mantissa, from code 0 on."""
        values = [0.0]
        while values[-1] < self.largest:
            exponent = (
                max(math.frexp(values[-1])[1] - 1, self.lowest) if values[-1] else self.lowest
            )
            values.append(values[-1] + 2.0 ** (exponent - self.mantissa))
        return (*values, *(-value for value in values))

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
        """float8_e4m3fn, which holds the values of E4M3 and of all that are shorter."""
        return values.to(torch.float8_e4m3fn)
