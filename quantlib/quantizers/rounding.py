"""From scales and codes to a :class:`QuantizedLinear`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quantlib.numbers.quantized import QuantizedLinear
from quantlib.quantizers.scales import GroupScales, by_group, smallest_scale
from quantlib.recipe import WeightScheme


def round_to_nearest(weight: Tensor, scales: GroupScales, scheme: WeightScheme) -> Tensor:
    """Each weight's nearest code, uint8 ``[..., out_features, in_features]``.

    Args:
        weight: float32 ``[..., out_features, in_features]``.
        scales: Of its groups.
        scheme: Bits, group size and symmetry.
    """
    groups = by_group(weight, scheme)
    codes = (groups / scales.scales[..., None]).round_().add_(scales.zero_points[..., None])
    return codes.clamp_(0, (1 << scheme.bits) - 1).flatten(-2).to(torch.uint8)


def to_quantized_linear(
    codes: Tensor, scales: GroupScales, scheme: WeightScheme, stored: torch.dtype
) -> QuantizedLinear:
    """Codes and scales as they are stored.

    Args:
        codes: uint8 ``[out_features, in_features]``.
        scales: Of the weight's groups, exact in ``stored``.
        scheme: Bits, group size and symmetry.
        stored: The dtype in which scales are stored.
    """
    return QuantizedLinear(
        codes=codes,
        scales=scales.scales.to(stored),
        zero_points=None if scheme.symmetric else scales.zero_points.to(torch.uint8),
        scheme=scheme,
    )


def stacked(weights: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """The linears of each of some inputs one below the other.

    Args:
        weights: ``[out_features, in_features]`` by name, of inputs of one shape.

    Returns:
        ``[inputs, sum of out_features, in_features]``.
    """
    every = [weight for of_input in weights for weight in of_input.values()]
    return torch.cat(every).unflatten(0, (len(weights), -1))


def to_quantized_linears(
    weights: Sequence[Mapping[str, Tensor]],
    codes: Tensor,
    scales: GroupScales,
    scheme: WeightScheme,
    stored: torch.dtype,
) -> list[dict[str, QuantizedLinear]]:
    """The linears of inputs that were quantized as one, as :func:`stacked` puts them.

    Args:
        weights: ``[out_features, in_features]`` by name, of each input.
        codes: uint8 ``[inputs, sum of out_features, in_features]``.
        scales: Of the stacked weights' groups of columns, exact in ``stored``.
        scheme: Bits, group size and symmetry.
        stored: The dtype in which scales are stored.
    """
    linears = []
    for number, of_input in enumerate(weights):
        rows = [len(weight) for weight in of_input.values()]
        parts = zip(
            of_input,
            codes[number].split(rows),
            scales.scales[number].split(rows),
            scales.zero_points[number].split(rows),
            strict=True,
        )
        linears.append(
            {
                name: to_quantized_linear(part, GroupScales(own, zeros), scheme, stored)
                for name, part, own, zeros in parts
            }
        )
    return linears


def round_to_float8(weight: Tensor, scheme: WeightScheme, stored: torch.dtype) -> QuantizedLinear:
    """FP8 E4M3 codes with one scale per output channel, which maps its largest weight to 448.

    Args:
        weight: float32 ``[out_features, in_features]``.
        scheme: Of type float.
        stored: The dtype in which scales are stored.
    """
    largest = torch.finfo(torch.float8_e4m3fn).max
    width = weight.abs().amax(1, keepdim=True)
    scales = (width / largest).clamp(min=smallest_scale(stored)).to(stored)
    # A scale that was rounded down would push the largest weight beyond the range.
    codes = (weight / scales.float()).clamp(-largest, largest).to(torch.float8_e4m3fn)
    return QuantizedLinear(codes, scales, None, scheme)


def round_input(x: Tensor, kind: str, step: Tensor | None = None) -> Tensor:
    """An input of a linear as vLLM rounds it when activations are quantized.

    Args:
        x: ``[..., in_features]``.
        kind: int for int8, float for FP8 E4M3.
        step: The scale of all tokens, float32 ``[1]``; None for one per token, which maps its
            largest magnitude to 127, or to 448 for FP8.

    Returns:
        The values that the codes stand for, in the dtype of ``x``.
    """
    top = 127.0 if kind == "int" else torch.finfo(torch.float8_e4m3fn).max
    bottom = -128.0 if kind == "int" else -top
    wide = x.float()
    if step is None:
        step = wide.abs().amax(-1, keepdim=True).clamp_min(1e-12) / top
    codes = (wide / step).clamp_(bottom, top)
    codes = codes.round_() if kind == "int" else codes.to(torch.float8_e4m3fn).float()
    return (codes * step).to(x.dtype)
