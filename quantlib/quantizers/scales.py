"""Scales and zero points of a weight's groups: by range, or by a search for the least error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn import functional

from quantlib.grids.values import Grid
from quantlib.numbers.grid import grid_of
from quantlib.numbers.quantized import group_count
from quantlib.numbers.scaling import nearest_scales, overall_scale
from quantlib.schemes import WeightScheme

_CHUNK_ELEMENTS = 1 << 17
"""Weights searched at once: small enough for the cache of a CPU core."""

_CHUNK_ELEMENTS_ACCELERATOR = 1 << 26

Part = tuple[slice, slice]
"""Some of the matrices, and some of their rows."""


@dataclass(frozen=True)
class GroupScales:
    """How the groups of a weight are represented.

    Attributes:
        scales: float32 ``[..., out_features, groups]``, exact in the form in which they are stored.
        zero_points: float32 whole numbers ``[..., out_features, groups]``.
        overall: What the stored scales are divided by, float32 ``[..., 1, 1]``; None where they are
            the scales.
    """

    scales: Tensor
    zero_points: Tensor
    overall: Tensor | None = None

    def where(self, better: Tensor, other: GroupScales) -> GroupScales:
        """These where they are better, elsewhere others."""
        return GroupScales(
            torch.where(better, self.scales, other.scales),
            torch.where(better, self.zero_points, other.zero_points),
        )

    def put(self, part: Part, found: GroupScales) -> None:
        """Writes what was found of a part."""
        self.scales[part], self.zero_points[part] = found.scales, found.zero_points


@dataclass(frozen=True)
class ScaleChoice:
    """Which scales and zero points the groups of weights can have.

    Attributes:
        scheme: Of the weights.
        stored: The dtype of the model.
        grid: Of the scheme.
        overall: What the stored scales are divided by, float32 ``[matrices, 1, 1]``, or None.
    """

    scheme: WeightScheme
    stored: torch.dtype
    grid: Grid
    overall: Tensor | None

    @classmethod
    def of(cls, weights: Tensor, scheme: WeightScheme, stored: torch.dtype) -> ScaleChoice:
        """Those of weights ``[matrices, out_features, in_features]``."""
        grid = grid_of(scheme)
        return cls(scheme, stored, grid, overall_scale(weights, scheme, grid))

    def empty(self, weights: Tensor) -> GroupScales:
        """Room for the scales and zero points of all groups."""
        groups = group_count(weights.shape[2], self.scheme.group_size)
        scales, zero_points = (weights.new_empty(*weights.shape[:2], groups) for _ in range(2))
        return GroupScales(scales, zero_points, self.overall)

    def of_range(self, part: Part, low: Tensor, high: Tensor, factor: float) -> GroupScales:
        """Those that make the ranges of groups, times a factor, fill the grid.

        Args:
            part: Of the weights: what the groups are of.
            low: Their least weights, ``[matrices, rows, groups]``.
            high: Their greatest.
            factor: On the ranges.
        """
        widths = of_blocks(self.grid.width(low, high), self.scheme, torch.amax)
        scales = self.nearest(part, widths * factor)
        return GroupScales(scales, self.grid.zero_points(low * factor, scales))

    def nearest(self, part: Part, widths: Tensor) -> Tensor:
        """The scales that make ranges of these widths fill the grid, as near as they can be."""
        overall = None if self.overall is None else self.overall[part[0]]
        return nearest_scales(widths, self.scheme, self.grid, self.stored, overall)


def range_scales(
    weights: Tensor,
    rows: Sequence[int],
    scheme: WeightScheme,
    stored: torch.dtype,
    factor: float = 1.0,
) -> GroupScales:
    """Scales from each group's extreme weights, which fill the grid.

    Args:
        weights: float32 ``[matrices, out_features, in_features]``.
        rows: Output channels of each of the linears that lie one below the other.
        scheme: Of the weights.
        stored: The dtype of the model.
        factor: On the ranges.
    """
    choice = ScaleChoice.of(weights, scheme, stored)
    found = choice.empty(weights)
    for part in parts(weights, rows, scheme):
        groups = by_group(weights[part], scheme)
        found.put(part, choice.of_range(part, groups.amin(-1), groups.amax(-1), factor))
    return found


def searched_scales(
    weights: Tensor,
    rows: Sequence[int],
    importance: Tensor,
    scheme: WeightScheme,
    stored: torch.dtype,
    factors: tuple[float, ...],
) -> tuple[GroupScales, Tensor]:
    """For each group the factor on its range with the least error, weighted by importance.

    The error of a group is the sum over its columns of importance times the squared rounding error.
    With the diagonal of the Hessian as importance, this is the output error that rounding alone
    would cause if input channels were uncorrelated; with its diagonal blocks, if channels of
    different groups were.

    Args:
        weights: float32 ``[matrices, out_features, in_features]``.
        rows: Output channels of each of the linears that lie one below the other.
        importance: float32 ``[matrices, in_features]``, not negative; or a positive semidefinite
            block for each group, ``[matrices, groups, group_size, group_size]``.
        scheme: Of the weights.
        stored: The dtype of the model.
        factors: On the range, to try.

    Returns:
        The scales, and the errors with them, float32 ``[matrices, out_features, groups]``.
    """
    if importance.ndim == 2:
        importance = by_group(importance, scheme)
    choice = ScaleChoice.of(weights, scheme, stored)
    found = choice.empty(weights)
    errors = torch.empty_like(found.scales)
    for part in parts(weights, rows, scheme):
        groups = by_group(weights[part], scheme)
        low, high = groups.amin(-1), groups.amax(-1)
        scaled, rounded = torch.empty_like(groups), torch.empty_like(groups)
        best = choice.of_range(part, low, high, factors[0])
        least = torch.full_like(low, torch.inf)
        for factor in factors:
            candidate = choice.of_range(part, low, high, factor)
            torch.mul(groups, candidate.scales.reciprocal()[..., None], out=scaled)
            choice.grid.nearest(scaled, candidate.zero_points[..., None], out=rounded)
            error = _weighted_squares(rounded.sub_(scaled), importance[part[0]])
            error = of_blocks(error.mul_(candidate.scales.square()), scheme, torch.sum)
            better = error < least
            least = torch.where(better, error, least)
            best = candidate.where(better, best)
        found.put(part, best)
        errors[part] = least
    return found, errors


def _weighted_squares(change: Tensor, importance: Tensor) -> Tensor:
    """The error of each row and group.

    Overwrites ``change``, ``[matrices, rows, groups, group_size]``.
    """
    if importance.ndim == 3:
        return torch.einsum("mrgc,mgc->mrg", change.square_(), importance)
    by_group = change.transpose(1, 2)
    return (by_group @ importance).mul_(by_group).sum(-1).transpose(1, 2)


def parts(weights: Tensor, rows: Sequence[int], scheme: WeightScheme) -> Iterator[Part]:
    """What is searched at once: whole blocks of rows that share scales, which may be all.

    Args:
        weights: ``[matrices, out_features, in_features]``.
        rows: Output channels of each of the linears that lie one below the other.
        scheme: Of the weights.
    """
    limit = _CHUNK_ELEMENTS if weights.device.type == "cpu" else _CHUNK_ELEMENTS_ACCELERATOR
    count, every, columns = weights.shape
    high = scheme.block_rows
    step = every if high == -1 else max(1, limit // columns // high) * high
    at_once = max(1, step // every)
    ends = list(accumulate(rows)) if high > 1 else [every]
    for matrix in range(0, count, at_once):
        for first, end in pairwise([0, *ends]):
            for row in range(first, end, step):
                yield slice(matrix, matrix + at_once), slice(row, min(row + step, end))


def by_group(weight: Tensor, scheme: WeightScheme) -> Tensor:
    """The groups of the last dimension's columns, ``[..., groups, columns]``."""
    return weight.unflatten(-1, (group_count(weight.shape[-1], scheme.group_size), -1))


def of_blocks(values: Tensor, scheme: WeightScheme, joined: Callable[..., Tensor]) -> Tensor:
    """Values of rows and groups, those of rows that share scales joined into one for each.

    Args:
        values: ``[matrices, rows, groups]``.
        scheme: Says how many rows do, from the first on.
        joined: Joins along a dimension; zeros do not change what it gives.
    """
    high, rows = scheme.block_rows, values.shape[1]
    if high == 1:
        return values
    if high == -1:
        high = rows
    blocks = functional.pad(values, (0, 0, 0, -rows % high)).unflatten(1, (-1, high))
    return joined(blocks, 2).repeat_interleave(high, 1)[:, :rows]
