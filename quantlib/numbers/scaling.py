"""What scales can be, and how they are stored.

| scale | a group's scale is | stored as |
|---|---|---|
| model | a number of the model's dtype | that |
| e4m3 | an FP8 number over one number of the whole weight (NVFP4) | float8_e4m3fn; float32 |
| e8m0 | a power of two (OCP Microscaling Formats 1.0) | uint8, the exponent plus 127 |
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quantlib.grids.values import Grid
from quantlib.schemes import WeightScheme

_E4M3 = torch.finfo(torch.float8_e4m3fn)
_SMALLEST_E4M3 = 2.0**-9
_BIAS = 127


def overall_scale(weights: Tensor, scheme: WeightScheme, grid: Grid) -> Tensor | None:
    """What stored scales are divided by; None where the scheme has nothing of the kind.

    The largest weight becomes the largest value, times the largest FP8 number, as NVIDIA's and
    compressed-tensors' quantizers have it. vLLM keeps one for linears that it computes as one.

    Args:
        weights: float32 ``[matrices, out_features, in_features]``: of each input all linears that
            share it.
        scheme: Of the weights.
        grid: Its grid.

    Returns:
        float32 ``[matrices, 1, 1]``.
    """
    if scheme.scale != "e4m3":
        return None
    largest = weights.abs().amax((-2, -1), keepdim=True)
    ratio = _E4M3.max * grid.steps / largest
    return torch.where(ratio.isfinite(), ratio, 1.0)


def nearest_scales(
    widths: Tensor,
    scheme: WeightScheme,
    grid: Grid,
    stored: torch.dtype,
    overall: Tensor | None,
) -> Tensor:
    """The scales, as they will be stored, that make ranges fill a grid.

    Args:
        widths: Of the ranges, as the grid measures them.
        scheme: What scales can be.
        grid: Of the scheme.
        stored: The dtype of the model.
        overall: Of :func:`overall_scale`.

    Returns:
        float32, positive.
    """
    if scheme.scale == "e8m0":
        return _powers_of_two(widths, grid)
    wanted = widths / grid.steps
    if overall is not None:
        numbers = (wanted * overall).clamp(_SMALLEST_E4M3, _E4M3.max)
        return numbers.to(torch.float8_e4m3fn).float() / overall
    # A scale that underflows in its stored dtype would divide by zero when it is read back.
    scales = wanted.clamp(min=smallest_scale(stored)).to(stored).float()
    return torch.where(widths > 0, scales, 1.0)


def _powers_of_two(widths: Tensor, grid: Grid) -> Tensor:
    """The least powers of two over which ranges end before the grid does.

    As compressed-tensors' ``generate_mx_scales``, which for E2M1 and E4M3 takes the power above the
    largest weight where that is 1.75 of the one below, and leaves room for the largest value.
    """
    mantissas, exponents = torch.frexp(widths)
    mantissa, exponent = math.frexp(grid.end)
    exponents = exponents + (mantissas >= mantissa).to(exponents.dtype) - exponent
    return torch.ldexp(torch.ones_like(widths), exponents.clamp(-_BIAS + 1, _BIAS))


def encode_scales(
    scales: Tensor, scheme: WeightScheme, stored: torch.dtype, overall: Tensor | None
) -> Tensor:
    """Scales of :func:`nearest_scales` as they are stored."""
    if scheme.scale == "e8m0":
        return (torch.frexp(scales)[1] - 1 + _BIAS).to(torch.uint8)
    if overall is not None:
        return (scales * overall).to(torch.float8_e4m3fn)
    return scales.to(stored)


def decode_scales(scales: Tensor, scheme: WeightScheme, overall: Tensor | None) -> Tensor:
    """The inverse of :func:`encode_scales`, float32."""
    if scheme.scale == "e8m0":
        exponents = scales.to(torch.int32) - _BIAS
        return torch.ldexp(torch.ones(exponents.shape, device=scales.device), exponents)
    return scales.float() if overall is None else scales.float() / overall


def smallest_scale(stored: torch.dtype) -> float:
    """The smallest scale that a dtype stores and float32 divides by.

    In float16 it is a subnormal number: channels of small weights, such as those that smoothing
    makes, have scales below the normal ones.
    """
    info = torch.finfo(stored)
    return max(info.tiny * info.eps, torch.finfo(torch.float32).tiny)
