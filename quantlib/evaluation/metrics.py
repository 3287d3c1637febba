"""What two models' logits say of each other, position by position. Pure functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS_AT_ONCE = 32
"""Keeps the temporaries of a step within a processor's cache at usual vocabularies."""


@dataclass(frozen=True)
class Comparison:
    """A candidate's predictions against a reference's; each tensor is ``[positions]``.

    Attributes:
        kl: KL(reference ‖ candidate) in nats, float32.
        reference_nll: Negative log likelihood of the target under the reference, float32.
        candidate_nll: The same under the candidate.
        same_top1: Whether both find the same token most likely, bool.
    """

    kl: Tensor
    reference_nll: Tensor
    candidate_nll: Tensor
    same_top1: Tensor


def compare(reference: Tensor, candidate: Tensor, targets: Tensor) -> Comparison:
    """Compares the predictions of two models.

    With ``p`` and ``q`` the softmax of the logits ``a`` and ``b``,
    ``KL(p ‖ q) = sum(p * (a - b)) - logsumexp(a) + logsumexp(b)``: exact over the vocabulary and
    without a logarithm per token.

    Args:
        reference: Logits ``[positions, vocabulary]``; computed with in float32.
        candidate: Logits of the same shape.
        targets: int64 ``[positions]``, the token that comes next.
    """
    parts = [
        _compare_rows(*rows)
        for rows in zip(
            reference.split(_ROWS_AT_ONCE),
            candidate.split(_ROWS_AT_ONCE),
            targets.split(_ROWS_AT_ONCE),
            strict=True,
        )
    ]
    return Comparison(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _compare_rows(
    reference: Tensor, candidate: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    reference_norm, reference_top1, shifted_reference = _normalize(reference)
    candidate_norm, candidate_top1, shifted_candidate = _normalize(candidate)
    target = targets[:, None]
    reference_nll = reference_norm - shifted_reference.gather(1, target)[:, 0]
    candidate_nll = candidate_norm - shifted_candidate.gather(1, target)[:, 0]
    gap = torch.sub(shifted_reference, shifted_candidate, out=shifted_candidate)
    weights = shifted_reference.sub_(reference_norm[:, None]).exp_()
    kl = gap.mul_(weights).sum(1) - reference_norm + candidate_norm
    same = (reference_top1 == candidate_top1) & kl.isfinite()
    return kl, reference_nll, candidate_nll, same


def _normalize(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The log of the sum of exponentials of shifted logits, the top token, the shifted logits."""
    top = logits.max(dim=1)
    shifted = logits.float() - top.values.float()[:, None]
    return shifted.exp().sum(1).log(), top.indices, shifted


def next_token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log likelihood of each target, float32 ``[positions]``.

    Args:
        logits: ``[positions, vocabulary]``.
        targets: int64 ``[positions]``.
    """
    chosen = logits.gather(1, targets[:, None])[:, 0].float()
    return chosen - logits.float().logsumexp(1)
