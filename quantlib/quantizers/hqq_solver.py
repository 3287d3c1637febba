"""Half-quadratic quantization: scales and zero points that forgive outliers.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023: the sum of
``|W - dequantized| ** p`` with p below 1 is minimized by alternating between the errors that are
forgiven (their equation 4, a shrinkage) and the representation of the rest (equation 5). There the
scale is given and the zero point is a real number. Here zero points are whole numbers, as the
kernels that serve them take, the scale is solved for as well, and errors can be weighted by the
importance of their input channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quantlib.numbers.scaling import smallest_scale
from quantlib.quantizers.scales import GroupScales, Part, ScaleChoice, by_group, of_blocks, parts
from quantlib.schemes import WeightScheme

_PENALTY = 2.0
"""The first weight of the quadratic term, for errors in steps of the scale."""

_PENALTY_GROWTH = 1.1


def half_quadratic_scales(
    weights: Tensor,
    rows: Sequence[int],
    importance: Tensor,
    scheme: WeightScheme,
    stored: torch.dtype,
    *,
    norm: float,
    iterations: int,
    factors: tuple[float, ...],
) -> GroupScales:
    """For each group the least ``sum(importance * |error| ** norm)`` that was found.

    Args:
        weights: float32 ``[matrices, out_features, in_features]``.
        rows: Output channels of each of the linears that lie one below the other.
        importance: float32 ``[matrices, in_features]``, not negative.
        scheme: Of the weights.
        stored: The dtype of the model.
        norm: The exponent p.
        iterations: Alternations from each start.
        factors: On the group's range, to start from.
    """
    by_channel = by_group(importance, scheme)[:, None]  # for every row
    choice = ScaleChoice.of(weights, scheme, stored)
    found = choice.empty(weights)
    for part in parts(weights, rows, scheme):
        groups, own = by_group(weights[part], scheme), by_channel[part[0]]
        found.put(part, _solve(groups, own, choice, part, norm, iterations, factors))
    return found


def _solve(
    groups: Tensor,
    importance: Tensor,
    choice: ScaleChoice,
    part: Part,
    norm: float,
    iterations: int,
    factors: tuple[float, ...],
) -> GroupScales:
    low, high = groups.amin(-1), groups.amax(-1)
    best = choice.of_range(part, low, high, 1.0)
    least = _distance(groups, _values(groups, best, choice), best, importance, choice, norm)
    for factor in factors:
        current = choice.of_range(part, low, high, factor)
        penalty = _PENALTY
        for _ in range(iterations):
            values = _values(groups, current, choice)
            distance = _distance(groups, values, current, importance, choice, norm)
            better = distance < least
            least = torch.where(better, distance, least)
            best = current.where(better, best)
            steps = current.scales[..., None]
            kept = groups - _forgiven(groups / steps - values, penalty, norm) * steps
            current = _fitted(values, kept, importance, current, choice, part)
            penalty *= _PENALTY_GROWTH
    return best


def _values(groups: Tensor, scales: GroupScales, choice: ScaleChoice) -> Tensor:
    x = groups / scales.scales[..., None]
    return choice.grid.nearest(x, scales.zero_points[..., None], out=x)


def _distance(
    groups: Tensor,
    values: Tensor,
    scales: GroupScales,
    importance: Tensor,
    choice: ScaleChoice,
    norm: float,
) -> Tensor:
    errors = (groups - values * scales.scales[..., None]).abs_().pow_(norm)
    return of_blocks(errors.mul_(importance).sum(-1), choice.scheme, torch.sum)


def _forgiven(errors: Tensor, penalty: float, norm: float) -> Tensor:
    """The generalized soft threshold: the paper's equation 4."""
    sizes = errors.abs()
    threshold = sizes.clamp(min=1e-8).pow(norm - 1) / penalty
    return errors.sign() * (sizes - threshold).clamp_(min=0)


def _fitted(
    values: Tensor,
    kept: Tensor,
    importance: Tensor,
    current: GroupScales,
    choice: ScaleChoice,
    part: Part,
) -> GroupScales:
    """Scales and zero points by weighted least squares from values to the weights that are kept."""
    zeros, scheme, levels = current.zero_points, choice.scheme, values
    if not scheme.symmetric:
        codes = values + zeros[..., None]
        shares = importance / importance.sum(-1, keepdim=True).clamp(min=1e-30)
        middle = (shares * codes).sum(-1)
        centred = shares * (codes - middle[..., None])
        slope = (centred * kept).sum(-1) / (centred * codes).sum(-1).clamp(min=1e-12)
        slope = torch.where(slope > 0, slope, current.scales)
        zeros = (middle - (shares * kept).sum(-1) / slope).round().clamp(0, choice.grid.steps)
        levels = codes - zeros[..., None]
    weighted = importance * levels
    up = of_blocks((weighted * kept).sum(-1), scheme, torch.sum)
    down = of_blocks((weighted * levels).sum(-1), scheme, torch.sum)
    slope = up / down.clamp(min=1e-30)
    usable = slope >= smallest_scale(choice.stored)
    widths = torch.where(usable, slope, current.scales) * choice.grid.steps
    return GroupScales(choice.nearest(part, widths), zeros)
