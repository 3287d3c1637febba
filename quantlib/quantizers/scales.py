"""Scales and zero points of a weight's groups: by range, or by a search for the least error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlib.numbers.quantized import group_count
from quantlib.recipe import WeightScheme

SHRINKS = tuple(1.0 - 0.05 * step for step in range(13))
"""Factors on a group's range that a search tries: 1.0 down to 0.4."""

_CHUNK_ELEMENTS = 1 << 17
"""Weights searched at once: small enough for the cache of a CPU core."""

_CHUNK_ELEMENTS_ACCELERATOR = 1 << 26


@dataclass(frozen=True)
class GroupScales:
    """How the groups of a weight are represented.

    Attributes:
        scales: float32 ``[..., out_features, groups]``, exact in the dtype in which they are
            stored.
        zero_points: float32 whole numbers ``[..., out_features, groups]``.
    """

    scales: Tensor
    zero_points: Tensor


@dataclass(frozen=True)
class SearchedScales(GroupScales):
    """What a search found.

    Attributes:
        errors: What rounding costs with these scales, float32 ``[..., out_features, groups]``.
    """

    errors: Tensor


def range_scales(
    weight: Tensor, scheme: WeightScheme, stored: torch.dtype, shrink: float = 1.0
) -> GroupScales:
    """Scales from each group's extreme weights.

    Symmetric: the largest magnitude over half the number of steps (7.5 for 4 bits), as
    compressed-tensors' ``calculate_qparams`` does. Asymmetric: the range, zero included, over the
    number of steps.

    Args:
        weight: float32 ``[..., out_features, in_features]``.
        scheme: Bits, group size and symmetry.
        stored: The dtype in which scales are stored.
        shrink: Factor on the range.
    """
    groups = by_group(weight, scheme)
    return scales_of_range(groups.amin(-1), groups.amax(-1), shrink, scheme, stored)


def searched_scales(
    weights: Tensor,
    importance: Tensor,
    scheme: WeightScheme,
    stored: torch.dtype,
    shrinks: tuple[float, ...],
) -> SearchedScales:
    """For each group the shrunken range with the least error, weighted by importance.

    The error of a group is the sum over its columns of importance times the squared rounding error.
    With the diagonal of the Hessian as importance, this is the output error that rounding alone
    would cause if input channels were uncorrelated; with its diagonal blocks, if channels of
    different groups were.

    Args:
        weights: float32 ``[matrices, out_features, in_features]``.
        importance: float32 ``[matrices, in_features]``, not negative; or a positive semidefinite
            block for each group, ``[matrices, groups, group_size, group_size]``.
        scheme: Bits, group size and symmetry.
        stored: The dtype in which scales are stored.
        shrinks: Factors on the range to try.
    """
    if importance.ndim == 2:
        importance = by_group(importance, scheme)
    groups = group_count(weights.shape[2], scheme.group_size)
    found = SearchedScales(*(weights.new_empty(*weights.shape[:2], groups) for _ in range(3)))
    for matrices, rows in parts(weights):
        part = by_group(weights[matrices, rows], scheme)
        best = _search(part, importance[matrices], scheme, stored, shrinks)
        found.scales[matrices, rows] = best.scales
        found.zero_points[matrices, rows] = best.zero_points
        found.errors[matrices, rows] = best.errors
    return found


def _search(
    groups: Tensor,
    importance: Tensor,
    scheme: WeightScheme,
    stored: torch.dtype,
    shrinks: tuple[float, ...],
) -> SearchedScales:
    low, high = groups.amin(-1), groups.amax(-1)
    top = (1 << scheme.bits) - 1
    middle = 1 << (scheme.bits - 1)
    best_error = torch.full_like(low, torch.inf)
    best_scales, best_zeros = torch.empty_like(low), torch.empty_like(low)
    scaled, rounded = torch.empty_like(groups), torch.empty_like(groups)
    for shrink in shrinks:
        candidate = scales_of_range(low, high, shrink, scheme, stored)
        torch.mul(groups, candidate.scales.reciprocal()[..., None], out=scaled)
        torch.round(scaled, out=rounded)
        if scheme.symmetric:
            rounded.clamp_(-middle, top - middle)
        else:
            zeros = candidate.zero_points[..., None]
            rounded.add_(zeros).clamp_(0, top).sub_(zeros)
        error = _weighted_squares(rounded.sub_(scaled), importance)
        error *= candidate.scales.square()
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scales = torch.where(better, candidate.scales, best_scales)
        best_zeros = torch.where(better, candidate.zero_points, best_zeros)
    return SearchedScales(best_scales, best_zeros, best_error)


def _weighted_squares(change: Tensor, importance: Tensor) -> Tensor:
    """The error of each row and group.

    Overwrites ``change``, ``[matrices, rows, groups, group_size]``.
    """
    if importance.ndim == 3:
        return torch.einsum("mrgc,mgc->mrg", change.square_(), importance)
    by_group = change.transpose(1, 2)
    return (by_group @ importance).mul_(by_group).sum(-1).transpose(1, 2)


def smallest_scale(stored: torch.dtype) -> float:
    """The smallest scale that a dtype stores and float32 divides by.

    In float16 it is a subnormal number: channels of small weights, such as those that smoothing
    makes, have scales below the normal ones.
    """
    info = torch.finfo(stored)
    return max(info.tiny * info.eps, torch.finfo(torch.float32).tiny)


def parts(weights: Tensor) -> Iterator[tuple[slice, slice]]:
    """Which of the matrices and which of their rows are searched at once.

    Args:
        weights: ``[matrices, out_features, in_features]``.
    """
    limit = _CHUNK_ELEMENTS if weights.device.type == "cpu" else _CHUNK_ELEMENTS_ACCELERATOR
    count, rows, columns = weights.shape
    rows_at_once = max(1, limit // columns)
    at_once = max(1, rows_at_once // rows)
    for matrix in range(0, count, at_once):
        for row in range(0, rows, rows_at_once):
            yield slice(matrix, matrix + at_once), slice(row, row + rows_at_once)


def by_group(weight: Tensor, scheme: WeightScheme) -> Tensor:
    """The groups of the last dimension's columns, ``[..., groups, columns]``."""
    return weight.unflatten(-1, (group_count(weight.shape[-1], scheme.group_size), -1))


def scales_of_range(
    low: Tensor, high: Tensor, shrink: float, scheme: WeightScheme, stored: torch.dtype
) -> GroupScales:
    """Scales and zero points of groups that reach from ``low`` to ``high``, times ``shrink``."""
    steps = (1 << scheme.bits) - 1
    if scheme.symmetric:
        width = 2 * torch.maximum(-low, high)
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        width = high - low
    # A scale that underflows in its stored dtype would divide by zero when it is read back.
    smallest = smallest_scale(stored)
    scales = (width * (shrink / steps)).clamp(min=smallest).to(stored).float()
    scales = torch.where(width > 0, scales, torch.ones_like(scales))
    if scheme.symmetric:
        return GroupScales(scales, torch.full_like(scales, float(1 << (scheme.bits - 1))))
    return GroupScales(scales, (-low * shrink / scales).round().clamp(0, steps))
