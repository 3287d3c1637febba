"""Half-quadratic quantization: scales and zero points that forgive outliers.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023: the sum of
``|W - dequantized| ** p`` with p below 1 is minimized by alternating between the errors that are
forgiven (their equation 4, a shrinkage) and the representation of the rest (equation 5). There the
scale is given and the zero point is a real number. Here zero points are whole numbers, as the
kernels that serve them take, the scale is solved for as well, and errors can be weighted by the
importance of their input channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantlib.numbers.quantized import group_count
from quantlib.quantizers.scales import (
    GroupScales,
    by_group,
    parts,
    scales_of_range,
    smallest_scale,
)
from quantlib.recipe import WeightScheme

_PENALTY = 2.0
"""The first weight of the quadratic term, for errors in steps of the scale."""

_PENALTY_GROWTH = 1.1


def half_quadratic_scales(
    weights: Tensor,
    importance: Tensor,
    scheme: WeightScheme,
    stored: torch.dtype,
    *,
    norm: float,
    iterations: int,
    shrinks: tuple[float, ...],
) -> GroupScales:
    """For each group the least ``sum(importance * |error| ** norm)`` that was found.

    Args:
        weights: float32 ``[matrices, out_features, in_features]``.
        importance: float32 ``[matrices, in_features]``, not negative.
        scheme: Bits, group size and symmetry.
        stored: The dtype in which scales are stored.
        norm: The exponent p.
        iterations: Alternations from each start.
        shrinks: Factors on the group's range to start from.
    """
    by_channel = by_group(importance, scheme)[:, None]  # for every row
    groups = group_count(weights.shape[2], scheme.group_size)
    found = GroupScales(*(weights.new_empty(*weights.shape[:2], groups) for _ in range(2)))
    for matrices, rows in parts(weights):
        part, own = by_group(weights[matrices, rows], scheme), by_channel[matrices]
        best = _solve(part, own, scheme, stored, norm, iterations, shrinks)
        found.scales[matrices, rows] = best.scales
        found.zero_points[matrices, rows] = best.zero_points
    return found


def _solve(
    groups: Tensor,
    importance: Tensor,
    scheme: WeightScheme,
    stored: torch.dtype,
    norm: float,
    iterations: int,
    shrinks: tuple[float, ...],
) -> GroupScales:
    low, high = groups.amin(-1), groups.amax(-1)
    best = scales_of_range(low, high, 1.0, scheme, stored)
    least = _distance(groups, _codes(groups, best, scheme), best, importance, norm)
    for shrink in shrinks:
        current = scales_of_range(low, high, shrink, scheme, stored)
        penalty = _PENALTY
        for _ in range(iterations):
            codes = _codes(groups, current, scheme)
            distance = _distance(groups, codes, current, importance, norm)
            better = distance < least
            least = torch.where(better, distance, least)
            best = GroupScales(
                torch.where(better, current.scales, best.scales),
                torch.where(better, current.zero_points, best.zero_points),
            )
            steps = current.scales[..., None]
            errors = groups / steps - (codes - current.zero_points[..., None])
            kept = groups - _forgiven(errors, penalty, norm) * steps
            current = _fitted(codes, kept, importance, current, scheme, stored)
            penalty *= _PENALTY_GROWTH
    return best


def _codes(groups: Tensor, scales: GroupScales, scheme: WeightScheme) -> Tensor:
    codes = (groups / scales.scales[..., None]).round_().add_(scales.zero_points[..., None])
    return codes.clamp_(0, (1 << scheme.bits) - 1)


def _distance(
    groups: Tensor, codes: Tensor, scales: GroupScales, importance: Tensor, norm: float
) -> Tensor:
    restored = (codes - scales.zero_points[..., None]) * scales.scales[..., None]
    return (groups - restored).abs_().pow_(norm).mul_(importance).sum(-1)


def _forgiven(errors: Tensor, penalty: float, norm: float) -> Tensor:
    """The generalized soft threshold: the paper's equation 4."""
    sizes = errors.abs()
    threshold = sizes.clamp(min=1e-8).pow(norm - 1) / penalty
    return errors.sign() * (sizes - threshold).clamp_(min=0)


def _fitted(
    codes: Tensor,
    kept: Tensor,
    importance: Tensor,
    current: GroupScales,
    scheme: WeightScheme,
    stored: torch.dtype,
) -> GroupScales:
    """Scales and zero points by weighted least squares from codes to the weights that are kept."""
    zeros = current.zero_points
    if not scheme.symmetric:
        shares = importance / importance.sum(-1, keepdim=True).clamp(min=1e-30)
        middle = (shares * codes).sum(-1)
        centred = shares * (codes - middle[..., None])
        slope = (centred * kept).sum(-1) / (centred * codes).sum(-1).clamp(min=1e-12)
        slope = torch.where(slope > 0, slope, current.scales)
        zeros = (middle - (shares * kept).sum(-1) / slope).round()
        zeros = zeros.clamp(0, (1 << scheme.bits) - 1)
    levels = codes - zeros[..., None]
    weighted = importance * levels
    slope = (weighted * kept).sum(-1) / (weighted * levels).sum(-1).clamp(min=1e-30)
    usable = slope >= smallest_scale(stored)
    scales = torch.where(usable, slope, current.scales).to(stored).float()
    return GroupScales(scales, zeros)
