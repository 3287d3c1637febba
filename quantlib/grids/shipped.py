"""The types of numbers that ship. Imports no torch.

| type and bits | values | source |
|---|---|---|
| int, 2 to 8 | whole numbers, less a zero point | |
| float, 8 | E4M3, up to 448 | Micikevicius et al. 2022, FP8 formats for deep learning |
| float, 4 | E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 | OCP Microscaling Formats 1.0, 5.3.3 |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantlib.grids.registry import number_types
from quantlib.grids.types import NumberType

if TYPE_CHECKING:
    from quantlib.grids.values import Grid

_SHRINKS = tuple(1.0 - 0.05 * step for step in range(13))

# A group's largest weight becomes 6; or up to 4, whose neighbours are nearer (Cook et al. 2025,
# "Four over six"); or it is cut off.
_EXPANDED = (1.0, *(1.5 - 0.05 * step for step in range(10)), *_SHRINKS[1:9])


@number_types.register("int")
class WholeNumbers(NumberType):
    """Whole numbers."""

    bits = (2, 3, 4, 5, 6, 7, 8)

    @classmethod
    def grid(cls, bits: int, symmetric: bool) -> Grid:
        """Zero points are the middle of a symmetric one."""
        from quantlib.grids.values import IntegerGrid

        return IntegerGrid(bits, symmetric)

    @classmethod
    def range_factors(cls, bits: int) -> tuple[float, ...]:
        """Ranges that cut off a group's largest weights."""
        return _SHRINKS


@number_types.register("float")
class Floats(NumberType):
    """FP8 E4M3 and FP4 E2M1."""

    bits = (4, 8)

    @classmethod
    def grid(cls, bits: int, symmetric: bool) -> Grid:
        """E4M3 of 8 bits, E2M1 of 4."""
        from quantlib.grids.values import FloatGrid

        if bits == 4:
            return FloatGrid(lowest=0, mantissa=1, largest=6.0)
        # compressed-tensors' scales that are powers of two leave room above 448.
        return FloatGrid(lowest=-6, mantissa=3, largest=448.0, limit=448.0)

    @classmethod
    def range_factors(cls, bits: int) -> tuple[float, ...]:
        """Of FP4 smaller ranges and larger ones; FP8 is much finer than where ranges end."""
        return _EXPANDED if bits == 4 else (1.0,)
