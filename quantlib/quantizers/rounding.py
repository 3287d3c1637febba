"""From scales and values to a :class:`QuantizedLinear`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quantlib.numbers.grid import grid_of
from quantlib.numbers.quantized import QuantizedLinear
from quantlib.numbers.scaling import encode_scales
from quantlib.quantizers.scales import GroupScales, by_group, range_scales
from quantlib.schemes import WeightScheme


def round_to_nearest(weights: Tensor, scales: GroupScales, scheme: WeightScheme) -> Tensor:
    """Each weight's nearest value of the grid, float32 ``[..., out_features, in_features]``.

    Args:
        weights: float32, of that shape.
        scales: Of its groups.
        scheme: Of the weights.
    """
    values = by_group(weights, scheme) / scales.scales[..., None]
    grid_of(scheme).nearest(values, scales.zero_points[..., None], out=values)
    return values.flatten(-2)


def stacked(weights: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """The linears of each of some inputs one below the other.

    Args:
        weights: ``[out_features, in_features]`` by name, of inputs of one shape.

    Returns:
        ``[inputs, sum of out_features, in_features]``.
    """
    every = [weight for of_input in weights for weight in of_input.values()]
    return torch.cat(every).unflatten(0, (len(weights), -1))


def round_within_range(
    weights: Mapping[str, Tensor], scheme: WeightScheme, stored: torch.dtype, factor: float = 1.0
) -> dict[str, QuantizedLinear]:
    """Linears that share an input, each weight as the nearest value within its group's range.

    Args:
        weights: float32 ``[out_features, in_features]`` by name.
        scheme: Of the weights.
        stored: The dtype of the model.
        factor: On the ranges.
    """
    whole = stacked([weights])
    scales = range_scales(whole, rows_of([weights]), scheme, stored, factor)
    values = round_to_nearest(whole, scales, scheme)
    return to_quantized_linears([weights], values, scales, scheme, stored)[0]


def nearest_within_range(
    weights: Mapping[str, Tensor], scheme: WeightScheme, stored: torch.dtype
) -> dict[str, Tensor]:
    """What the codes of :func:`round_within_range` stand for, float32, by name."""
    whole, rows = stacked([weights]), rows_of([weights])
    scales = range_scales(whole, rows, scheme, stored)
    values = by_group(round_to_nearest(whole, scales, scheme), scheme)
    restored = values.mul_(scales.scales[..., None]).flatten(-2)[0]
    return dict(zip(weights, restored.split(rows), strict=True))


def rows_of(weights: Sequence[Mapping[str, Tensor]]) -> list[int]:
    """The output channels of each of the linears that :func:`stacked` puts below each other."""
    return [len(weight) for weight in weights[0].values()]


def to_quantized_linears(
    weights: Sequence[Mapping[str, Tensor]],
    values: Tensor,
    scales: GroupScales,
    scheme: WeightScheme,
    stored: torch.dtype,
) -> list[dict[str, QuantizedLinear]]:
    """The linears of inputs that were quantized as one, as :func:`stacked` puts them.

    Args:
        weights: ``[out_features, in_features]`` by name, of each input.
        values: Of the grid, float32 ``[inputs, sum of out_features, in_features]``; overwritten.
        scales: Of the stacked weights' groups of columns.
        scheme: Of the weights.
        stored: The dtype of the model.
    """
    zeros = scales.zero_points
    codes = grid_of(scheme).encode(by_group(values, scheme), zeros[..., None]).flatten(-2)
    kept = encode_scales(scales.scales, scheme, stored, scales.overall)
    linears = []
    for number, of_input in enumerate(weights):
        rows = [len(weight) for weight in of_input.values()]
        parts = zip(
            of_input,
            codes[number].split(rows),
            kept[number].split(rows),
            zeros[number].split(rows),
            strict=True,
        )
        overall = None if scales.overall is None else scales.overall[number].flatten()
        linears.append(
            {
                name: QuantizedLinear(
                    codes=part,
                    scales=own[:1] if scheme.block_rows == -1 else own[:: scheme.block_rows],
                    zero_points=None if scheme.symmetric else zero.to(torch.uint8),
                    scheme=scheme,
                    overall=overall,
                )
                for name, part, own, zero in parts
            }
        )
    return linears
