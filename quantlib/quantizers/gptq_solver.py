"""GPTQ: rounds a weight column by column and lets the later columns make up for the error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2023, algorithm 1, with static groups: scales are fixed beforehand, so that columns
can be visited in the order of their importance without a group index in the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LAZY_COLUMNS = 64
"""Columns whose updates reach the rest of the weight together (the paper's B)."""

MAX_DAMPING = 1.0

_SMALL_TRIANGLE = 192
"""Up to this size a triangular matrix is inverted at once."""


class NotPositiveDefiniteError(Exception):
    """No damping up to the limit made the Hessian positive definite."""


@dataclass(frozen=True)
class Factor:
    """The factorized Hessian of one input.

    Attributes:
        order: Input channels in the order in which they are rounded, int64 ``[in_features]``.
        upper: U with ``inverse(H) = U.T @ U`` in that order; float32 upper triangular.
        damping: What was added to the diagonal, as a share of its mean.
        attempts: Dampings tried, the successful one included.
    """

    order: Tensor
    upper: Tensor
    damping: float
    attempts: int


def factorize(hessian: Tensor, damping: float, act_order: bool) -> Factor:
    """Inverts and factorizes a Hessian, with as little damping as it takes.

    Args:
        hessian: float32 ``[in_features, in_features]``, symmetric, ``X.T @ X`` over the calibration
            tokens.
        damping: Added to the diagonal, as a share of its mean; raised tenfold, up to 1, until the
            factorization succeeds.
        act_order: Whether to visit channels by falling diagonal instead of from left to right.

    Raises:
        NotPositiveDefiniteError: No damping helped: the Hessian holds values that are not finite.
    """
    diagonal = hessian.diagonal()
    mean = diagonal.mean()
    if not torch.isfinite(mean):
        raise NotPositiveDefiniteError
    if mean == 0:
        mean = torch.ones_like(mean)
    if act_order:
        order = diagonal.argsort(descending=True, stable=True)
    else:
        order = torch.arange(len(diagonal), device=hessian.device)
    # With columns reversed, H = R @ R.T for an upper triangular R, and inverse(R) is the paper's
    # Cholesky factor of the inverse: one factorization instead of two and an inversion.
    backwards = hessian[order][:, order].flip(0, 1)
    attempts = 0
    while damping <= MAX_DAMPING:
        attempts += 1
        damped = backwards.clone()
        damped.diagonal().add_(damping * mean)
        lower, info = torch.linalg.cholesky_ex(damped)
        if info == 0:
            inverse = _inverse_of_lower(lower)
            if torch.isfinite(inverse.diagonal()).all():
                return Factor(order, inverse.flip(0, 1).contiguous(), damping, attempts)
        damping = min(damping * 10, MAX_DAMPING) if damping < MAX_DAMPING else 2 * MAX_DAMPING
    raise NotPositiveDefiniteError


def _inverse_of_lower(lower: Tensor) -> Tensor:
    """Inverts a lower triangular matrix by halves, which skips the zeros that a solver computes."""
    size = len(lower)
    inverse = torch.zeros_like(lower)
    if size <= _SMALL_TRIANGLE:
        inverse.diagonal().fill_(1.0)
        return torch.linalg.solve_triangular(lower, inverse, upper=False)
    half = size // 2
    inverse[:half, :half] = _inverse_of_lower(lower[:half, :half])
    inverse[half:, half:] = _inverse_of_lower(lower[half:, half:])
    product = inverse[half:, half:] @ (lower[half:, :half] @ inverse[:half, :half])
    inverse[half:, :half] = product.neg_()
    return inverse


def round_columns(
    weight: Tensor, factor: Factor, scales: Tensor, zero_points: Tensor, bits: int
) -> Tensor:
    """Rounds a weight.

    Args:
        weight: float32 ``[out_features, in_features]``; not changed.
        factor: Of the input's Hessian.
        scales: float32 ``[out_features, groups]``.
        zero_points: float32 whole numbers, of the same shape.
        bits: Of a code.

    Returns:
        The codes, uint8 ``[out_features, in_features]``.
    """
    columns = weight.shape[1]
    group_size = columns // scales.shape[1]
    # Transposed, so that a column of the weight is contiguous.
    remaining = weight.t()[factor.order].contiguous()
    scales, zeros = scales.t().contiguous(), zero_points.t().contiguous()
    group_of = (factor.order // group_size).tolist()
    pivots = factor.upper.diagonal().tolist()
    top = float((1 << bits) - 1)
    codes = torch.empty_like(remaining)
    errors = torch.empty_like(remaining[:_LAZY_COLUMNS])
    for start in range(0, columns, _LAZY_COLUMNS):
        end = min(start + _LAZY_COLUMNS, columns)
        for column in range(start, end):
            group = group_of[column]
            value, scale, zero = remaining[column], scales[group], zeros[group]
            code = torch.div(value, scale, out=codes[column])
            code.round_().add_(zero).clamp_(0.0, top)
            error = torch.sub(code, zero, out=errors[column - start])
            error.mul_(scale).sub_(value).div_(-pivots[column])
            if column + 1 < end:
                remaining[column + 1 : end].addr_(
                    factor.upper[column, column + 1 : end], error, alpha=-1.0
                )
        if end < columns:
            remaining[end:].addmm_(
                factor.upper[start:end, end:].t(), errors[: end - start], alpha=-1.0
            )
    restored = torch.empty_like(codes)
    restored[factor.order] = codes
    return restored.t().to(torch.uint8).contiguous()
