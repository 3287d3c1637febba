from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantlib.task_section import TasksSection
from quantlib.tasks.judging import Judgement, TaskAnswers, counted_tasks, judge, task_recovery
from quantlib.tasks.outcome import TaskOutcome

SECTION = TasksSection.model_validate({"run": ["gsm8k", "ifeval"]})


def answers(share: float, seed: int, items: int = 1000) -> TaskAnswers:
    """Answers that are right in this share of the items."""
    generator = np.random.default_rng(seed)
    ones = np.ones((items, 1))
    score = (generator.random((items, 1)) < share).astype(np.float64)
    return TaskAnswers(score, 50 * ones, 0 * ones, ones, 0 * ones)


def nearly(before: TaskAnswers, flipped: float, seed: int) -> TaskAnswers:
    """The same, but for some answers that turn out otherwise."""
    other = np.random.default_rng(seed).random(before.score.shape) < flipped
    return replace(before, score=np.where(other, 1 - before.score, before.score))


def judged(
    original: dict[str, TaskAnswers],
    again: dict[str, TaskAnswers],
    quantized: dict[str, TaskAnswers],
    section: TasksSection = SECTION,
    thinks: bool = False,
) -> Judgement:
    outcomes = [
        TaskOutcome(
            name=name,
            title="",
            scored="",
            source="",
            shipped=True,
            content="",
            items=len(original[name].score),
            original=original[name].summary(thinks=thinks),
            again=again[name].summary(thinks=thinks),
            quantized=quantized[name].summary(thinks=thinks),
            recovery=task_recovery(original, quantized, name, len(original)),
            counted=name in counted_tasks(original),
        )
        for name in original
    ]
    return judge(section, original, again, quantized, outcomes)


@pytest.fixture
def original() -> dict[str, TaskAnswers]:
    return {"gsm8k": answers(0.7, 1), "ifeval": answers(0.5, 2)}


@pytest.fixture
def again(original: dict[str, TaskAnswers]) -> dict[str, TaskAnswers]:
    return {name: nearly(each, 0.1, 3) for name, each in original.items()}


def test_the_original_passes_against_itself(
    original: dict[str, TaskAnswers], again: dict[str, TaskAnswers]
) -> None:
    found = judged(original, again, original)
    assert (found.verdict, found.recovery and found.recovery.value) == ("passed", 1.0)
    assert judged(original, again, again).verdict == "passed"


def test_a_loss_beyond_the_noise_is_a_regression(
    original: dict[str, TaskAnswers], again: dict[str, TaskAnswers]
) -> None:
    lost = {name: nearly(each, 0.0, 4) for name, each in original.items()}
    kept = np.random.default_rng(5).random((1000, 1)) < 0.7
    lost = {name: replace(each, score=each.score * kept) for name, each in lost.items()}
    found = judged(original, again, lost)
    assert found.verdict == "regression"
    assert "the limit is" in found.reason


def test_a_loss_in_one_task_is_not_hidden_by_the_others(
    original: dict[str, TaskAnswers], again: dict[str, TaskAnswers]
) -> None:
    kept = np.random.default_rng(5).random((1000, 1)) < 0.75
    more = replace(original["gsm8k"], score=np.ones((1000, 1)))
    lost = {
        "gsm8k": more,
        "ifeval": replace(original["ifeval"], score=original["ifeval"].score * kept),
    }
    found = judged(original, again, lost)
    assert found.recovery is not None
    assert found.recovery.value > 1
    assert found.verdict == "regression"
    assert "too little of ifeval" in found.reason


def test_few_items_do_not_tell() -> None:
    original = {"gsm8k": answers(0.7, 1, items=20)}
    worse = replace(original["gsm8k"], score=original["gsm8k"].score.copy())
    worse.score[np.flatnonzero(worse.score)[0]] = 0
    found = judged(original, original, {"gsm8k": worse})
    assert found.verdict == "inconclusive"
    assert "ask more items" in found.reason


def test_a_model_without_a_point_says_nothing() -> None:
    nothing = {"gsm8k": answers(0.0, 1)}
    found = judged(nothing, nothing, {"gsm8k": answers(0.5, 1)})
    assert (found.verdict, found.recovery) == ("inconclusive", None)


@pytest.mark.parametrize(
    ("what", "thinks", "said"),
    [
        ({"empty": np.ones((1000, 1))}, False, "100.0% of the answers are empty"),
        ({"closed": np.zeros((1000, 1))}, True, "0.0% of the answers close their thinking"),
    ],
)
def test_what_no_rounding_explains_is_broken(
    original: dict[str, TaskAnswers],
    again: dict[str, TaskAnswers],
    what: dict[str, np.ndarray],
    thinks: bool,
    said: str,
) -> None:
    if thinks:
        ones = np.ones((1000, 1))
        original = {name: replace(each, closed=ones) for name, each in original.items()}
    broken = original | {"gsm8k": replace(original["gsm8k"], **what)}
    found = judged(original, again, broken, thinks=thinks)
    assert found.verdict == "broken"
    assert said in found.reason
