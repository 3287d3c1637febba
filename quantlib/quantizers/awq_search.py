"""The arithmetic of AWQ: scales per input channel that make rounding cost the output least."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from quantlib.models.folding import Fold
from quantlib.numbers.quantized import group_count
from quantlib.quantizers.scales import searched_scales
from quantlib.schemes import WeightScheme

_INPUT_EXPONENTS = (0.0, 0.15, 0.3, 0.45, 0.6)
_WEIGHT_EXPONENTS = (0.0, 0.5, 1.0)

_SAMPLED_ROWS = 512
"""Candidates are tried on every n-th output channel, on no fewer than these where there are."""

_SMALLEST_MAGNITUDE = 1e-2
"""Share of the mean below which channels count as equally small."""


def diagonal_blocks(hessians: Sequence[Tensor], scheme: WeightScheme) -> Tensor:
    """The Hessian of each column group, float32 ``[matrices, groups, group_size, group_size]``.

    Args:
        hessians: float32 ``[in_features, in_features]`` each.
        scheme: Says which columns share a scale.
    """
    groups = group_count(len(hessians[0]), scheme.group_size)
    size = len(hessians[0]) // groups
    blocks = [each.view(groups, size, groups, size).diagonal(dim1=0, dim2=2) for each in hessians]
    return torch.stack(blocks).permute(0, 3, 1, 2).contiguous()


def scaled_blocks(blocks: Tensor, scales: Tensor) -> Tensor:
    """The blocks of inputs that are divided by scales.

    Args:
        blocks: float32 ``[matrices, groups, group_size, group_size]``.
        scales: float32 ``[matrices, in_features]``.
    """
    by_group = scales.reciprocal().view(blocks.shape[:3])
    return blocks * by_group[..., :, None] * by_group[..., None, :]


def search_scales(
    weights: Tensor,
    blocks: Tensor,
    fold: Fold,
    scheme: WeightScheme,
    stored: torch.dtype,
    *,
    duo: bool,
    factors: tuple[float, ...],
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
        weights: float32 ``[matrices, out_features, in_features]``, of each input all linears that
            share it.
        blocks: The Hessian of each column group, float32
            ``[matrices, groups, group_size, group_size]``.
        fold: Where the scales will go, or one of several places of one kind.
        scheme: Bits, group size and symmetry.
        stored: The dtype in which the scales of groups are stored.
        duo: Whether to try other values of ``b`` than 0.
        factors: On the range of a group, to try.

    Returns:
        float32 ``[matrices, in_features]``, tied, their geometric mean about 1.
    """
    activations = _floored(blocks.diagonal(dim1=2, dim2=3).flatten(1).sqrt())
    magnitudes = _floored(_relative_magnitudes(weights, blocks.shape[1]))
    sample = weights[:, :: max(1, weights.shape[1] // _SAMPLED_ROWS)]
    best = torch.ones_like(activations).view(blocks.shape[:3])
    least = torch.full_like(best[..., 0], torch.inf)
    exponents = itertools.product(_INPUT_EXPONENTS, _WEIGHT_EXPONENTS if duo else (0.0,))
    for a, b in exponents:
        scales = activations**a / magnitudes**b
        scales = fold.tie(scales / scales.log().mean(1, keepdim=True).exp())
        scaled = scaled_blocks(blocks, scales)
        candidate = sample * scales[:, None]
        rows = (candidate.shape[1],)
        _, errors = searched_scales(candidate, rows, scaled, scheme, stored, factors)
        errors = errors.sum(1)
        if fold.producer.repeats > 1:
            errors = errors.sum(1, keepdim=True).expand_as(errors)
        better = errors < least
        least = torch.where(better, errors, least)
        best = torch.where(better[..., None], scales.view_as(best), best)
    return best.flatten(1)


def _relative_magnitudes(weights: Tensor, groups: int) -> Tensor:
    """Mean magnitude of each column's weights relative to the largest of their groups."""
    magnitudes = weights.abs().unflatten(2, (groups, -1))
    largest = magnitudes.amax(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return (magnitudes / largest).mean(1).flatten(1)


def _floored(magnitudes: Tensor) -> Tensor:
    """Magnitudes whose powers stay in the range of every dtype."""
    floor = _SMALLEST_MAGNITUDE * magnitudes.mean(1, keepdim=True)
    return magnitudes.clamp(min=floor.clamp(min=torch.finfo(magnitudes.dtype).tiny))
