"""Scales and rounding of one matrix; quantizers do it for several at once."""

from __future__ import annotations

import torch
from torch import Tensor

from quantlib.numbers.quantized import QuantizedLinear
from quantlib.quantizers.rounding import round_to_nearest, to_quantized_linears
from quantlib.quantizers.scales import GroupScales, searched_scales
from quantlib.schemes import WeightScheme


def of_first(scales: GroupScales) -> GroupScales:
    """The scales of the first matrix, ``[out_features, groups]``."""
    overall = None if scales.overall is None else scales.overall[0]
    return GroupScales(scales.scales[0], scales.zero_points[0], overall)


def searched(
    weight: Tensor,
    importance: Tensor,
    scheme: WeightScheme,
    stored: torch.dtype,
    factors: tuple[float, ...],
) -> tuple[GroupScales, Tensor]:
    """The best scales of a matrix, and their errors."""
    found, errors = searched_scales(
        weight[None], [len(weight)], importance[None], scheme, stored, factors
    )
    return of_first(found), errors[0]


def ranged(
    weight: Tensor, scheme: WeightScheme, stored: torch.dtype, factor: float = 1.0
) -> GroupScales:
    """Scales from each group's range, times a factor."""
    return searched(weight, weight.new_ones(weight.shape[1]), scheme, stored, (factor,))[0]


def as_linear(
    values: Tensor, scales: GroupScales, scheme: WeightScheme, stored: torch.dtype
) -> QuantizedLinear:
    """Values of the grid and their scales as they are stored."""
    overall = None if scales.overall is None else scales.overall[None]
    batched = GroupScales(scales.scales[None], scales.zero_points[None], overall)
    (linears,) = to_quantized_linears(
        [{"linear": values}], values[None].clone(), batched, scheme, stored
    )
    return linears["linear"]


def nearest(
    weight: Tensor, scales: GroupScales, scheme: WeightScheme, stored: torch.dtype
) -> QuantizedLinear:
    """A matrix rounded to nearest."""
    return as_linear(round_to_nearest(weight, scales, scheme), scales, scheme, stored)
