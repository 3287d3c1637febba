"""How much of the original's score a checkpoint keeps, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
"""Of the bootstrap: the bounds then vary by a few per cent of the interval's width."""

_AT_ONCE = 100
_SEED = 0
_ONE_SIDED = 0.025

Scores = Mapping[str, np.ndarray]
"""By task: float64 ``[items, repeats]``, from 0 to 1."""


@dataclass(frozen=True)
class Recovery:
    """A ratio of scores.

    Attributes:
        value: The candidate's score by the reference's.
        low: Its lower confidence bound.
        high: Its upper one.
    """

    value: float
    low: float
    high: float


def recovery_of(
    reference: Scores, candidate: Scores, tasks: Sequence[str], tests: int = 1
) -> Recovery | None:
    """The candidate's score by the reference's, with the bounds of a paired bootstrap.

    Each task counts alike: its score is the mean over its items. Items are drawn again and again,
    within each task, and both models keep their answers to an item together (B. Efron, R. J.
    Tibshirani: An Introduction to the Bootstrap, 1993).

    Args:
        reference: Scores of the original.
        candidate: Scores of what is held against it, on the same items.
        tasks: Those that count.
        tests: So many bounds are looked at; each is the wider for it (Bonferroni), so that all of
            them hold with 95 %.

    Returns:
        None where the reference has no point in these tasks: nothing can be kept of nothing.
    """
    means = {name: (reference[name].mean(axis=1), candidate[name].mean(axis=1)) for name in tasks}
    before = sum(one.mean() for one, _ in means.values())
    if not before:
        return None
    value = sum(other.mean() for _, other in means.values()) / before
    generator = np.random.default_rng(_SEED)
    drawn = np.zeros((2, RESAMPLES))
    for one, other in means.values():
        for start in range(0, RESAMPLES, _AT_ONCE):
            rows = generator.integers(len(one), size=(_AT_ONCE, len(one)))
            drawn[:, start : start + _AT_ONCE] += one[rows].mean(axis=1), other[rows].mean(axis=1)
    ratios = np.divide(drawn[1], drawn[0], out=np.full(RESAMPLES, np.inf), where=drawn[0] > 0)
    # Of counts with no room above or below, such as all right, the bootstrap says no more than
    # what was seen; the value itself is always within.
    share = _ONE_SIDED / tests
    low, high = np.quantile(ratios, [share, 1 - share], method="nearest")
    return Recovery(float(value), float(min(low, value)), float(max(high, value)))


def noise_floor(reference: Scores, again: Scores, tasks: Sequence[str]) -> float:
    """How far from 1 the recovery of the original against itself can be.

    Args:
        reference: Scores of the original.
        again: Its scores with other seeds.
        tasks: Those that count.
    """
    itself = recovery_of(reference, again, tasks)
    return 0.0 if itself is None else max(1 - itself.low, itself.high - 1, 0.0)
