"""GPTQ: rounds a weight column by column and lets the later columns make up for the error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2023, algorithm 1, with static groups: scales are fixed beforehand, so that columns
can be visited in the order of their importance without a group index in the checkpoint.

Matrices of one shape are rounded together, each by its own Hessian: the loop over columns runs once
for all of them, and every code is what it is for the matrix alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlib.grids.values import Grid

_LAZY_COLUMNS = 64
"""Columns whose updates reach the rest of the weight together (the paper's B)."""

MAX_DAMPING = 1000.0
"""More than any Hessian needs: products of bfloat16 are off by 2**-8 of the largest entry, which
may be all of the trace, and the trace is as many means as there are columns."""

_SMALL_TRIANGLE = 192
"""Up to this size a triangular matrix is inverted at once."""


class NotPositiveDefiniteError(Exception):
    """No damping up to the limit made a Hessian positive definite.

    Attributes:
        matrix: Which of the Hessians.
    """

    def __init__(self, matrix: int) -> None:
        super().__init__(matrix)
        self.matrix = matrix


@dataclass(frozen=True)
class Factor:
    """The factorized Hessians of some inputs.

    Attributes:
        order: Input channels in the order in which they are rounded, int64
            ``[matrices, in_features]``.
        upper: U with ``inverse(H) = U.T @ U`` in that order; float32 upper triangular,
            ``[matrices, in_features, in_features]``.
        damping: What was added to the diagonal of each, as a share of its mean.
        attempts: Dampings tried for each, the successful one included.
    """

    order: Tensor
    upper: Tensor
    damping: list[float]
    attempts: list[int]


def factorize(hessians: Sequence[Tensor], damping: float, act_order: bool) -> Factor:
    """Inverts and factorizes Hessians, each with as little damping as it takes.

    Args:
        hessians: float32 ``[in_features, in_features]`` each, symmetric, ``X.T @ X`` over the
            calibration tokens.
        damping: Added to the diagonal, as a share of its mean; raised tenfold, up to MAX_DAMPING,
            until the factorization succeeds.
        act_order: Whether to visit channels by falling diagonal instead of from left to right.

    Raises:
        NotPositiveDefiniteError: No damping helped: a Hessian holds values that are not finite.
    """
    diagonals = torch.stack([hessian.diagonal() for hessian in hessians])
    means = diagonals.mean(1)
    for matrix, finite in enumerate(means.isfinite().tolist()):
        if not finite:
            raise NotPositiveDefiniteError(matrix)
    means = torch.where(means == 0, 1.0, means)
    if act_order:
        order = diagonals.argsort(dim=1, descending=True, stable=True)
    else:
        order = torch.arange(diagonals.shape[1], device=diagonals.device).expand_as(diagonals)
    # With columns reversed, H = R @ R.T for an upper triangular R, and inverse(R) is the paper's
    # Cholesky factor of the inverse: one factorization instead of two and an inversion.
    backwards = torch.stack(
        [hessian[back][:, back] for hessian, back in zip(hessians, order.flip(1), strict=True)]
    )
    upper = torch.empty_like(backwards)
    shares, attempts = [0.0] * len(hessians), [0] * len(hessians)
    left = list(range(len(hessians)))
    while left:
        if damping > MAX_DAMPING:
            raise NotPositiveDefiniteError(left[0])
        damped = backwards[left]
        damped.diagonal(dim1=1, dim2=2).add_(damping * means[left, None])
        lower, info = torch.linalg.cholesky_ex(damped)
        inverse = _inverse_of_lower(lower)
        done = (info == 0) & inverse.diagonal(dim1=1, dim2=2).isfinite().all(1)
        failed = []
        for matrix, own, succeeded in zip(left, inverse, done.tolist(), strict=True):
            attempts[matrix] += 1
            if succeeded:
                upper[matrix] = own.flip(0, 1)
                shares[matrix] = damping
            else:
                failed.append(matrix)
        left = failed
        damping = min(damping * 10, MAX_DAMPING) if damping < MAX_DAMPING else 2 * MAX_DAMPING
    return Factor(order, upper, shares, attempts)


def _inverse_of_lower(lower: Tensor) -> Tensor:
    """Inverts lower triangular matrices by halves, which skips the zeros that a solver computes.

    Args:
        lower: ``[matrices, size, size]``.
    """
    size = lower.shape[-1]
    inverse = torch.zeros_like(lower)
    if size <= _SMALL_TRIANGLE:
        inverse.diagonal(dim1=1, dim2=2).fill_(1.0)
        return torch.linalg.solve_triangular(lower, inverse, upper=False)
    half = size // 2
    inverse[:, :half, :half] = _inverse_of_lower(lower[:, :half, :half])
    inverse[:, half:, half:] = _inverse_of_lower(lower[:, half:, half:])
    product = inverse[:, half:, half:] @ (lower[:, half:, :half] @ inverse[:, :half, :half])
    inverse[:, half:, :half] = product.neg_()
    return inverse


def round_columns(
    weights: Tensor, factor: Factor, scales: Tensor, zero_points: Tensor, grid: Grid
) -> Tensor:
    """Rounds weights of one shape.

    Args:
        weights: float32 ``[matrices, out_features, in_features]``; not changed.
        factor: Of the Hessians of their inputs.
        scales: float32 ``[matrices, out_features, groups]``.
        zero_points: float32 whole numbers, of the same shape.
        grid: What is rounded to.

    Returns:
        Values of the grid, float32 ``[matrices, out_features, in_features]``.
    """
    matrices, _, columns = weights.shape
    # Columns first, so that those which are rounded together are contiguous.
    every, order = torch.arange(matrices, device=weights.device), factor.order.t()
    remaining = weights.permute(2, 0, 1)[order, every].contiguous()
    scales, zeros = scales.permute(2, 0, 1).contiguous(), zero_points.permute(2, 0, 1).contiguous()
    group_of = order // (columns // len(scales))
    pivots = factor.upper.diagonal(dim1=1, dim2=2).t()[..., None].neg()
    upper = factor.upper.permute(1, 2, 0)[..., None]
    values = torch.empty_like(remaining)
    errors = torch.empty_like(remaining[:_LAZY_COLUMNS])
    for start in range(0, columns, _LAZY_COLUMNS):
        end = min(start + _LAZY_COLUMNS, columns)
        groups = group_of[start:end]
        each = zip(range(start, end), scales[groups, every], zeros[groups, every], strict=True)
        for column, scale, zero in each:
            weight = remaining[column]
            value = torch.div(weight, scale, out=values[column])
            grid.nearest(value, zero, out=value)
            error = torch.mul(value, scale, out=errors[column - start])
            error.sub_(weight).div_(pivots[column])
            if column + 1 < end:
                remaining[column + 1 : end].addcmul_(
                    upper[column, column + 1 : end], error, value=-1.0
                )
        if end < columns:
            remaining[end:].transpose(0, 1).baddbmm_(
                factor.upper[:, start:end, end:].transpose(1, 2),
                errors[: end - start].transpose(0, 1),
                alpha=-1.0,
            )
    restored = torch.empty_like(values)
    restored[order, every] = values
    return restored.permute(1, 2, 0).contiguous()
