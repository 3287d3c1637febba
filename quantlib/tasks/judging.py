"""From answers to a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantlib.report.text import percent
from quantlib.task_section import TasksSection
from quantlib.tasks.answers import FIGURES
from quantlib.tasks.outcome import Answers, Interval, TaskOutcome
from quantlib.tasks.recovery import Recovery, Scores, noise_floor, recovery_of
from quantlib.verdicts import Outcome

_LOST = 0.1
"""Answers that a checkpoint leaves empty or thinking open, beyond the original's: a model that is
broken, and not one that is a little worse."""


@dataclass(frozen=True)
class TaskAnswers:
    """What one model answered to one task, one array for each figure.

    Attributes:
        score: float64 ``[items, repeats]``, as all are; from 0 to 1.
        tokens: Length of the answers.
        empty: 1 where there is no word in it.
        valid: 1 where it can be read as an answer.
        closed: 1 where it closes its thinking.
    """

    score: np.ndarray
    tokens: np.ndarray
    empty: np.ndarray
    valid: np.ndarray
    closed: np.ndarray

    @classmethod
    def of(cls, repeats: Sequence[Sequence[Mapping[str, Any]]]) -> TaskAnswers:
        """From what is kept of each repetition.

        Args:
            repeats: The answers, in the order of the items.
        """

        def read(name: str) -> np.ndarray:
            rows = [[answer[name] for answer in answers] for answers in repeats]
            return np.array(rows, np.float64).T

        return cls(**{name: read(name) for name in FIGURES})

    def summary(self, *, thinks: bool) -> Answers:
        """The means."""
        return Answers(
            score=float(self.score.mean()),
            tokens=float(self.tokens.mean()),
            empty=float(self.empty.mean()),
            valid=float(self.valid.mean()),
            closed=float(self.closed.mean()) if thinks else None,
        )


@dataclass(frozen=True)
class Judgement:
    """The verdict, and what it rests on."""

    verdict: Outcome
    reason: str
    recovery: Interval | None
    itself: Interval | None
    floor: float
    limit: float


ByTask = Mapping[str, TaskAnswers]


def counted_tasks(original: ByTask) -> list[str]:
    """The tasks in which the original has a point: of the others nothing can be kept."""
    return [name for name, answers in original.items() if answers.score.any()]


def task_recovery(original: ByTask, quantized: ByTask, name: str, tests: int) -> Interval | None:
    """Of one task of several."""
    return _interval(recovery_of(_scores(original), _scores(quantized), [name], tests))


def judge(
    section: TasksSection,
    original: ByTask,
    again: ByTask,
    quantized: ByTask,
    outcomes: Sequence[TaskOutcome],
) -> Judgement:
    """Holds a checkpoint's recovery against the limit.

    The limit is ``min_recovery`` less the noise floor. A checkpoint passes where the lower bound of
    its recovery over all tasks is not below it, and is a regression where the upper bound is, over
    all tasks or in one of them, less the floor of that one. Anything between is inconclusive.

    Args:
        section: Of the recipe.
        original: Its answers.
        again: The original's with other seeds.
        quantized: The checkpoint's.
        outcomes: What is known of each task.
    """
    counted = counted_tasks(original)
    reference, candidate = _scores(original), _scores(quantized)
    itself = recovery_of(reference, _scores(again), counted) if counted else None
    overall = recovery_of(reference, candidate, counted) if counted else None
    floor = noise_floor(reference, _scores(again), counted) if counted else 0.0
    limit = section.min_recovery - floor
    verdict, reason = _verdict(section, overall, limit, reference, _scores(again), outcomes)
    return Judgement(verdict, reason, _interval(overall), _interval(itself), floor, limit)


def _verdict(
    section: TasksSection,
    overall: Recovery | None,
    limit: float,
    reference: Scores,
    again: Scores,
    outcomes: Sequence[TaskOutcome],
) -> tuple[Outcome, str]:
    if broken := [said for outcome in outcomes for said in _broken(outcome)]:
        return "broken", "; ".join(broken)
    if overall is None:
        return "inconclusive", (
            "the original has no point in any task, so that nothing can be said of what is kept; "
            "give it tasks that it can do"
        )
    found = (
        f"{percent(overall.value)} of the original's score is kept ({percent(overall.low)} to "
        f"{percent(overall.high)})"
    )
    held = (
        f"{percent(limit)}: {percent(section.min_recovery)}, less the "
        f"{percent(section.min_recovery - limit)} by which the original's own varies"
    )
    lost = [
        f"{outcome.name}: {percent(outcome.recovery.value)} (at most "
        f"{percent(outcome.recovery.high)})"
        for outcome in outcomes
        if outcome.recovery is not None
        and outcome.recovery.high
        < section.min_recovery - noise_floor(reference, again, [outcome.name])
    ]
    if lost or overall.high < limit:
        where = f"; too little of {', '.join(lost)}" if lost else ""
        return "regression", f"{found}{where}; the limit is {held}"
    if overall.low >= limit:
        return "passed", f"{found}; the limit is {held}"
    return "inconclusive", (
        f"{found}, which reaches below {held}: ask more items (samples) or more often (repeats)"
    )


def _broken(outcome: TaskOutcome) -> list[str]:
    """What of a checkpoint's answers no loss of precision explains."""
    said = []
    before, now = outcome.original, outcome.quantized
    if now.empty - before.empty > _LOST:
        said.append(
            f"{outcome.name}: {percent(now.empty)} of the answers are empty, "
            f"{percent(before.empty)} of the original's"
        )
    if before.closed is not None and now.closed is not None and before.closed - now.closed > _LOST:
        said.append(
            f"{outcome.name}: {percent(now.closed)} of the answers close their thinking, "
            f"{percent(before.closed)} of the original's"
        )
    return said


def _scores(answers: ByTask) -> dict[str, np.ndarray]:
    return {name: each.score for name, each in answers.items()}


def _interval(found: Recovery | None) -> Interval | None:
    return None if found is None else Interval(value=found.value, low=found.low, high=found.high)
