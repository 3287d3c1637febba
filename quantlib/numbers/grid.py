"""The grid of a scheme, and which ranges a search for its scales tries."""

from __future__ import annotations

from quantlib.grids import number_types
from quantlib.grids.values import Grid
from quantlib.schemes import WeightScheme

_POWERS = (1.0, 2.0, 0.5)


def grid_of(scheme: WeightScheme) -> Grid:
    """The grid of a scheme."""
    return number_types.get(scheme.type).grid(scheme.bits, scheme.symmetric)


def range_factors(scheme: WeightScheme) -> tuple[float, ...]:
    """Factors on the range of a group that a search for its scale tries; 1 is the first."""
    if scheme.scale == "e8m0":
        return _POWERS
    return number_types.get(scheme.type).range_factors(scheme.bits)
