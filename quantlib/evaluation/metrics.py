"""What two models' logits say of each other, position by position. Pure functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS_AT_ONCE = 8
"""Keeps the temporaries within a processor's cache at usual vocabularies."""


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


@dataclass(frozen=True)
class Leads:
    """The most likely tokens, and how sure they are; each tensor is ``[positions]``.

    Attributes:
        tokens: int64.
        margins: Nats by which each is more likely than the next, float32.
    """

    tokens: Tensor
    margins: Tensor


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


def compare_halves(logits: Tensor, targets: Tensor) -> Comparison:
    """Compares the first half of the rows, the reference's, with the second, the candidate's.

    Args:
        logits: ``[2 * positions, vocabulary]``.
        targets: int64 ``[positions]``, on any device.

    Returns:
        The comparison, on the CPU.
    """
    reference, candidate = logits.split(len(targets))
    compared = compare(reference, candidate, targets.to(logits.device))
    return Comparison(*(tensor.cpu() for tensor in vars(compared).values()))


def _compare_rows(
    reference: Tensor, candidate: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    reference, reference_weights, reference_sum = _exponentials(reference)
    candidate, _, candidate_sum = _exponentials(candidate)
    reference_log, candidate_log = reference_sum.log(), candidate_sum.log()
    # Each largest logit is 0 now and they share a place if a sum is 0: cheaper than two argmax.
    same_top1 = (reference + candidate).amax(dim=1) == 0
    target = targets[:, None]
    reference_nll = reference_log - reference.gather(1, target)[:, 0]
    candidate_nll = candidate_log - candidate.gather(1, target)[:, 0]
    gap = reference.sub_(candidate).mul_(reference_weights).sum(dim=1) / reference_sum
    return gap - reference_log + candidate_log, reference_nll, candidate_nll, same_top1


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits less their maximum, their exponentials, and the sum of these; all float32."""
    shifted = logits.float() - logits.amax(dim=1, keepdim=True).float()
    exponentials = shifted.exp()
    return shifted, exponentials, exponentials.sum(dim=1)


def leads(logits: Tensor) -> Leads:
    """What logits ``[positions, vocabulary]`` find most likely; the result is on the CPU."""
    best = logits.float().topk(2, dim=1)
    return Leads(best.indices[:, 0].cpu(), (best.values[:, 0] - best.values[:, 1]).cpu())


def next_token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log likelihood of each target, float32 ``[positions]``.

    Args:
        logits: ``[positions, vocabulary]``.
        targets: int64 ``[positions]``.
    """
    chosen = logits.gather(1, targets[:, None])[:, 0].float()
    return chosen - logits.float().logsumexp(1)
