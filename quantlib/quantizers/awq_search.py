"""The arithmetic of AWQ: scales per input channel that make rounding cost the output least."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from quantlib.models.folding import Fold
from quantlib.quantized import group_count
from quantlib.quantizers.scales import searched_scales
from quantlib.recipe import WeightScheme

_INPUT_EXPONENTS = (0.0, 0.15, 0.3, 0.45, 0.6)
_WEIGHT_EXPONENTS = (0.0, 0.5, 1.0)

_SAMPLED_ROWS = 512
"""Candidates are tried on every n-th output channel, on no fewer than these where there are."""

_SMALLEST_MAGNITUDE = 1e-2
"""Share of the mean below which channels count as equally small."""


def diagonal_blocks(hessian: Tensor, scheme: WeightScheme) -> Tensor:
    """The Hessian of each column group, float32 ``[groups, group_size, group_size]``.

    Args:
        hessian: float32 ``[in_features, in_features]``.
        scheme: Says which columns share a scale.
    """
    groups = group_count(len(hessian), scheme.group_size)
    size = len(hessian) // groups
    blocks = hessian.view(groups, size, groups, size).diagonal(dim1=0, dim2=2)
    return blocks.permute(2, 0, 1).contiguous()


def scaled_blocks(blocks: Tensor, scales: Tensor) -> Tensor:
    """The blocks of an input that is divided by scales.

    Args:
        blocks: float32 ``[groups, group_size, group_size]``.
        scales: float32 ``[in_features]``.
    """
    by_group = scales.reciprocal().view(len(blocks), -1)
    return blocks * by_group[:, :, None] * by_group[:, None, :]


def search_scales(
    weight: Tensor,
    blocks: Tensor,
    fold: Fold,
    scheme: WeightScheme,
    stored: torch.dtype,
    *,
    duo: bool,
    shrinks: tuple[float, ...],
) -> Tensor:
    """The scales of the input with the least output error, of ``input ** a / weight ** b``.

    Lin et al. 2023, equations 4 and 5: the scale of a channel is a power of the magnitude of its
    activations; ``b`` brings in the magnitude of its weights, as AutoAWQ does. Other than there,
    ``a`` and ``b`` are free of each other, every candidate is rounded with the ranges searched, and
    each group of columns takes a candidate of its own, because groups share no scale. Where several
    channels come from one channel of the producer, all groups take the same candidate.

    The error is the output's, on the calibration tokens, if channels of different groups were
    uncorrelated.

    Args:
        weight: float32 ``[out_features, in_features]``, all linears that share the input.
        blocks: The Hessian of each column group, float32 ``[groups, group_size, group_size]``.
        fold: Where the scales will go.
        scheme: Bits, group size and symmetry.
        stored: The dtype in which the scales of groups are stored.
        duo: Whether to try other values of ``b`` than 0.
        shrinks: Factors on the range of a group to try.

    Returns:
        float32 ``[in_features]``, tied, their geometric mean about 1.
    """
    activations = _floored(blocks.diagonal(dim1=1, dim2=2).flatten().sqrt())
    weights = _floored(_relative_magnitudes(weight, len(blocks)))
    sample = weight[:: max(1, len(weight) // _SAMPLED_ROWS)]
    best = torch.ones_like(activations).view(len(blocks), -1)
    least = torch.full_like(best[:, 0], torch.inf)
    exponents = itertools.product(_INPUT_EXPONENTS, _WEIGHT_EXPONENTS if duo else (0.0,))
    for a, b in exponents:
        scales = activations**a / weights**b
        scales = fold.tie(scales / scales.log().mean().exp())
        scaled = scaled_blocks(blocks, scales)
        errors = searched_scales(sample * scales, scaled, scheme, stored, shrinks).errors.sum(0)
        if fold.producer.repeats > 1:
            errors = errors.sum().expand_as(errors)
        better = errors < least
        least = torch.where(better, errors, least)
        best = torch.where(better[:, None], scales.view_as(best), best)
    return best.flatten()


def _relative_magnitudes(weight: Tensor, groups: int) -> Tensor:
    """Mean magnitude of each column's weights relative to the largest of their groups."""
    magnitudes = weight.abs().unflatten(1, (groups, -1))
    largest = magnitudes.amax(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    return (magnitudes / largest).mean(0).flatten()


def _floored(magnitudes: Tensor) -> Tensor:
    """Magnitudes whose powers stay in the range of every dtype."""
    floor = _SMALLEST_MAGNITUDE * magnitudes.mean()
    return magnitudes.clamp(min=floor.clamp(min=torch.finfo(magnitudes.dtype).tiny))
