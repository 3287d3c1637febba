"""Which of several checkpoints to take, in sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from quantlib.report.evaluation import Evaluation
from quantlib.report.run_reports import Run
from quantlib.report.text import percent, significant, size

_ALIKE = 1.01
"""Sizes within that factor are one size: formats lay the same numbers out with other headers."""

_ERRORS = 2
"""Standard errors within which two figures are not told apart, as the gate counts them."""


@dataclass(frozen=True)
class Conclusion:
    """What runs beside each other come to.

    Attributes:
        take: Letters of the checkpoints to take, of which any will do; none where there is no
            such checkpoint.
        sentences: That, why, and what is to be said of each of the others.
    """

    take: tuple[str, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """How much further one checkpoint is from the original than another.

    Attributes:
        value: Mean KL divergence over the other's, in nats.
        error: Its standard error.
    """

    value: float
    error: float

    @property
    def tied(self) -> bool:
        """Whether it is within two standard errors of nothing."""
        return abs(self.value) <= _ERRORS * self.error


def conclude(runs: Sequence[Run], *, fair: bool) -> Conclusion:
    """Says which checkpoint to take: the smallest of those that passed the gate.

    Of several of one size it is the one with the least KL divergence, or any of those that two
    standard errors do not tell from it.

    Args:
        runs: In the order in which they were given.
        fair: Whether all were judged against one original, on one text, by one engine.
    """
    judged = [run for run in runs if run.report.evaluation is not None]
    passed = [run for run in judged if run.report.verdict.outcome == "passed"]
    others = tuple(_not_passed(run) for run in runs if run not in passed)
    if not judged:
        return Conclusion((), ("No checkpoint was judged, so that nothing says which to take.",))
    if not passed:
        return Conclusion((), ("Take none: no checkpoint passed the gate.", *others))
    if len(passed) > 1 and not fair:
        return Conclusion(
            (),
            (
                f"{_all(passed)} passed, and nothing says which to take: they were not judged "
                f"alike.",
                *others,
            ),
        )
    least = min(_bytes(run) for run in passed)
    smallest = [run for run in passed if _bytes(run) <= _ALIKE * least]
    closest = min(smallest, key=lambda run: _evaluation(run).kl_mean)
    take = [run for run in smallest if run is closest or difference(run, closest).tied]
    letters = tuple(run.letter for run in take)
    beside = tuple(_beside(run, closest) for run in passed if run not in take)
    return Conclusion(letters, (_choice(take, smallest, passed), *beside, *others))


def difference(run: Run, other: Run) -> Difference:
    """How much further a run's checkpoint is from the original than another's.

    It is that of the windows that both read, where both reports tell them: they share what is hard
    in the text, which then is no error of the difference.
    """
    first, second = _evaluation(run), _evaluation(other)
    if first.spread and second.spread and first.text.digest == second.text.digest:
        pairs = zip(first.spread.windows, second.spread.windows, strict=False)
        apart = [one - another for one, another in pairs]
        if len(apart) > 1:
            error = statistics.stdev(apart) / math.sqrt(len(apart))
            return Difference(statistics.fmean(apart), error)
    return Difference(
        first.kl_mean - second.kl_mean,
        math.hypot(first.kl_standard_error, second.kl_standard_error),
    )


def _choice(take: Sequence[Run], smallest: Sequence[Run], passed: Sequence[Run]) -> str:
    first = take[0]
    figures = f"with {size(_bytes(first))} and KL divergence {_kl(first)}"
    if len(passed) == 1:
        return f"Take {_name(first)}: it alone passed the gate, {figures}."
    of_passed = f"of the {len(passed)} that passed the gate"
    if len(take) > 1:
        divergences = ", ".join(f"{run.letter} {_kl(run)}" for run in take)
        return (
            f"Take any of {_all(take)}: {of_passed} they are the smallest "
            f"({size(_bytes(first))}), and their KL divergences are a tie, within two standard "
            f"errors of each other ({divergences})."
        )
    if len(smallest) > 1:
        return (
            f"Take {_name(first)}: {of_passed}, {_all(smallest)} are the smallest, and of these it "
            f"is the closest to the original, {figures}."
        )
    return f"Take {_name(first)}: it is the smallest {of_passed}, {figures}."


def _beside(run: Run, taken: Run) -> str:
    """What another checkpoint that passed is next to the one to take."""
    larger = _bytes(run) / _bytes(taken)
    how_large = "of the same size" if larger <= _ALIKE else f"{percent(larger - 1)} larger"
    apart = difference(run, taken)
    if apart.tied:
        how_close = "no closer to the original: the two are a tie, within two standard errors"
    else:
        way = "closer to" if apart.value < 0 else "further from"
        how_close = f"{way} the original by {_figure(abs(apart.value), apart.error)}"
    return f"{_name(run)} passed too, is {how_large} and {how_close} (KL divergence {_kl(run)})."


def _not_passed(run: Run) -> str:
    verdict = run.report.verdict.outcome
    if verdict == "not_validated":
        return f"{_name(run)} was not judged."
    return f"{_name(run)} was refused: {verdict}."


def _name(run: Run) -> str:
    return f"{run.letter} ({run.name})"


def _all(runs: Sequence[Run]) -> str:
    *first, last = (run.letter for run in runs)
    return f"{', '.join(first)} and {last}"


def _bytes(run: Run) -> int:
    return run.report.sizes.bytes_quantized


def _kl(run: Run) -> str:
    made = _evaluation(run)
    return _figure(made.kl_mean, made.kl_standard_error)


def _figure(value: float, error: float) -> str:
    return f"{significant(value, 3)} \N{PLUS-MINUS SIGN} {significant(error, 2)}"


def _evaluation(run: Run) -> Evaluation:
    assert run.report.evaluation is not None
    return run.report.evaluation
