"""Half-quadratic quantization: zero points that forgive outliers.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023. With scales
from the range of each group, the sum of ``|W - dequantized| ** p`` with p below 1 is minimized over
the zero points, by alternating between the errors that are forgiven (their equation 4, a shrinkage)
and the zero point for the rest (equation 5, a mean).

There a zero point is a real number, which makes the errors of a group sum to nothing. The kernels
that serve our checkpoints take whole ones. Rounding the weights makes up for what that loses: those
nearest to a tie go the other way until the errors of a group sum to nothing again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantlib.quantizers.scales import GroupScales, by_group, range_scales, row_chunks
from quantlib.recipe import WeightScheme

_PENALTY = 10.0
_PENALTY_GROWTH = 1.01
"""The paper's beta and kappa, for weights as they are."""


def half_quadratic_scales(
    weight: Tensor, scheme: WeightScheme, stored: torch.dtype, *, norm: float, iterations: int
) -> GroupScales:
    """Scales from each group's range, with the zero points solved for.

    Args:
        weight: float32 ``[out_features, in_features]``.
        scheme: Bits, group size and symmetry; symmetric weights keep their zero point.
        stored: The dtype in which scales are stored.
        norm: The exponent p.
        iterations: Alternations.
    """
    start = range_scales(weight, scheme, stored)
    if scheme.symmetric:
        return start
    groups, top = by_group(weight, scheme), (1 << scheme.bits) - 1
    steps, zeros = start.scales[..., None], start.zero_points[..., None]
    penalty = _PENALTY
    for _ in range(iterations):
        codes = (groups / steps + zeros).round_().clamp_(0, top)
        errors = groups - (codes - zeros) * steps
        zeros = (codes - (groups - _forgiven(errors, penalty, norm)) / steps).mean(-1, keepdim=True)
        penalty *= _PENALTY_GROWTH
    return GroupScales(start.scales, zeros[..., 0].round().clamp(0, top))


def _forgiven(errors: Tensor, penalty: float, norm: float) -> Tensor:
    """The generalized soft threshold: the paper's equation 4."""
    sizes = errors.abs()
    threshold = sizes.clamp(min=1e-8).pow(norm - 1) / penalty
    return errors.sign() * (sizes - threshold).clamp_(min=0)


def round_balanced(weight: Tensor, scales: GroupScales, scheme: WeightScheme) -> Tensor:
    """Codes whose errors sum to nearly nothing in each group.

    Of the weights that were rounded in the direction of the sum, those nearest to a tie are rounded
    the other way, as many as it takes.

    Args:
        weight: float32 ``[out_features, in_features]``.
        scales: Of its groups.
        scheme: Bits, group size and symmetry.

    Returns:
        uint8 ``[out_features, in_features]``.
    """
    chunks = row_chunks(weight)
    size, top = len(chunks[0]), (1 << scheme.bits) - 1
    of_rows = zip(chunks, scales.scales.split(size), scales.zero_points.split(size), strict=True)
    return torch.cat(
        [_balanced(by_group(rows, scheme), steps, zeros, top) for rows, steps, zeros in of_rows]
    )


def _balanced(groups: Tensor, scales: Tensor, zeros: Tensor, top: int) -> Tensor:
    wanted = groups / scales[..., None] + zeros[..., None]
    codes = wanted.round().clamp_(0, top)
    excess = codes - wanted
    total = excess.sum(-1, keepdim=True)
    direction = total.sign()
    # The further a weight was moved in the direction of the sum, the less it costs to move it back.
    order = (excess * direction).argsort(-1, descending=True)
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, places)
    moved = (rank < total.abs().round()) & (excess * direction > 0)
    codes = (codes - direction * moved).clamp_(0, top)
    return codes.flatten(1).to(torch.uint8)
