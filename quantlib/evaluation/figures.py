"""What is measured of a quantized model against its original, with its error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from quantlib.evaluation.limits import LEAST_ROUNDING

ERRORS = 2.0
"""Standard errors that a figure may be off by: 95 of 100 samples are off by less."""


@dataclass(frozen=True)
class Figure:
    """A mean over the windows of a text, and the standard error of it."""

    value: float
    error: float

    @property
    def low(self) -> float:
        """It may be as low as that."""
        return self.value - ERRORS * self.error

    @property
    def high(self) -> float:
        """It may be as high as that."""
        return self.value + ERRORS * self.error


@dataclass(frozen=True)
class Figures:
    """What was measured of a quantized model against its original.

    Attributes:
        perplexity_original: Of the original on the held-out text.
        perplexity_quantized: Of the quantized model on the same text.
        perplexity_increase: Relative: 0.1 is 10 % above the original's.
        kl: Mean KL(original ‖ quantized) over the positions, in nats.
        top1: Share of positions whose most likely token is the same.
        times_rounding: ``kl`` over that of plain rounding on the same windows; None where that was
            not looked at.
        rounding_kl: Mean KL(original ‖ plain rounding), likewise.
        not_finite: Positions at which a model gave something that is no finite number.
        windows: Of text that was read.
    """

    perplexity_original: float
    perplexity_quantized: float
    perplexity_increase: Figure
    kl: Figure
    top1: Figure
    times_rounding: Figure | None
    rounding_kl: Figure | None
    not_finite: int
    windows: int

    def by_name(self) -> dict[str, float]:
        """The figures by the names that steps and commands give them."""
        found = {
            "perplexity_original": self.perplexity_original,
            "perplexity_quantized": self.perplexity_quantized,
            "perplexity_increase": self.perplexity_increase.value,
            "kl_mean": self.kl.value,
            "kl_standard_error": self.kl.error,
            "top1_agreement": self.top1.value,
        }
        return (
            found if self.rounding_kl is None else found | {"kl_rounding": self.rounding_kl.value}
        )


@dataclass(frozen=True)
class Compared:
    """A quantized model's predictions against the original's, position by position.

    Attributes:
        kl: KL(original ‖ quantized) in nats, float32 ``[windows, positions]``, as are the others.
        reference_nll: Negative log likelihoods of the token that follows, under the original.
        candidate_nll: The same under the quantized model.
        same_top1: Whether both find the same token most likely, bool.
    """

    kl: np.ndarray
    reference_nll: np.ndarray
    candidate_nll: np.ndarray
    same_top1: np.ndarray

    def __add__(self, more: Compared) -> Compared:
        """The windows of both, one after the other."""
        both = ((getattr(each, name) for each in (self, more)) for name in vars(self))
        return Compared(*(np.concatenate([*arrays]) for arrays in both))


def summarize(
    compared: Compared, predicted: np.ndarray, rounding: np.ndarray | None = None
) -> Figures:
    """The figures of a comparison.

    Standard errors are those of the windows' means, since the positions of a window are not
    independent; of a single window, those of its positions.

    Args:
        compared: At every position.
        predicted: bool ``[windows, positions]``; which positions count. All have to be finite.
        rounding: KL divergences of plain rounding at every position, where they are looked at.
    """
    increase = compared.candidate_nll.astype(np.float64) - compared.reference_nll
    finite = np.isfinite(compared.kl) & np.isfinite(increase)
    kl = _mean(compared.kl, predicted)
    rounded = None if rounding is None else _mean(rounding, predicted)
    return Figures(
        perplexity_original=_perplexity(compared.reference_nll[predicted]),
        perplexity_quantized=_perplexity(compared.candidate_nll[predicted]),
        perplexity_increase=_relative(_mean(increase, predicted)),
        kl=kl,
        top1=_mean(compared.same_top1, predicted),
        times_rounding=None
        if rounding is None or rounded is None
        else _times(compared.kl, rounding, predicted, max(rounded.value, LEAST_ROUNDING)),
        rounding_kl=rounded,
        not_finite=int((~finite).sum()),
        windows=len(compared.kl),
    )


def _mean(values: np.ndarray, predicted: np.ndarray) -> Figure:
    values = values.astype(np.float64)
    several = len(values) > 1
    samples = values.mean(axis=1, where=predicted) if several else values[predicted]
    with np.errstate(invalid="ignore"):
        error = float(samples.std(ddof=1) / math.sqrt(len(samples)))
        return Figure(float(values.mean(where=predicted)), error)


def _relative(increase: Figure) -> Figure:
    """From nats to a relative increase of perplexity, with the error that this one has there."""
    with np.errstate(over="ignore"):
        factor = float(np.exp(increase.value))
    return Figure(factor - 1, factor * increase.error)


def _times(kl: np.ndarray, rounding: np.ndarray, predicted: np.ndarray, rounded: float) -> Figure:
    """A ratio of means; its error is that of what the two differ by on the same windows."""
    times = _mean(kl, predicted).value / rounded
    apart = _mean(kl - times * rounding, predicted)
    return Figure(times, apart.error / rounded)


def _perplexity(nll: np.ndarray) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(nll.mean(dtype=np.float64)))
