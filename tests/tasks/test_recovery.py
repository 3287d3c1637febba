from __future__ import annotations

import numpy as np
import pytest

from quantlib.tasks.recovery import noise_floor, recovery_of


def scores(share: float, items: int = 400, seed: int = 0) -> np.ndarray:
    """``[items, 1]``, right in this share of them."""
    generator = np.random.default_rng(seed)
    return (generator.random((items, 1)) < share).astype(np.float64)


def test_a_model_keeps_all_of_itself() -> None:
    same = {"a": scores(0.6)}
    found = recovery_of(same, same, ["a"])
    assert found is not None
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    assert noise_floor(same, same, ["a"]) == 0.0


def test_tasks_count_alike_whatever_their_size() -> None:
    before = {"a": np.ones((10, 1)), "b": np.ones((1000, 1))}
    after = {"a": np.zeros((10, 1)), "b": np.ones((1000, 1))}
    found = recovery_of(before, after, ["a", "b"])
    assert found is not None
    assert found.value == 0.5


def test_the_interval_holds_what_it_says() -> None:
    """Of many draws of the same two models, 95 in 100 intervals hold the true ratio."""
    held = 0
    for seed in range(100):
        before = scores(0.8, seed=seed)
        lost = scores(0.1, seed=1000 + seed)  # a tenth of what was right is lost
        found = recovery_of({"a": before}, {"a": before * (1 - lost)}, ["a"])
        assert found is not None
        held += found.low <= 0.9 <= found.high
    assert 88 <= held <= 100


def test_it_is_paired() -> None:
    """The same answers to the same items are no noise; others are."""
    before = scores(0.5)
    paired = recovery_of({"a": before}, {"a": before}, ["a"])
    apart = recovery_of({"a": before}, {"a": scores(0.5, seed=1)}, ["a"])
    assert paired is not None
    assert apart is not None
    assert paired.high - paired.low == 0
    assert 0.15 < apart.high - apart.low < 0.5


def test_more_bounds_are_wider() -> None:
    before, after = {"a": scores(0.5)}, {"a": scores(0.5, seed=1)}
    one, six = (recovery_of(before, after, ["a"], tests) for tests in (1, 6))
    assert one is not None
    assert six is not None
    assert six.low < one.low < one.high < six.high


def test_nothing_is_kept_of_nothing() -> None:
    assert recovery_of({"a": np.zeros((5, 1))}, {"a": np.ones((5, 1))}, ["a"]) is None


def test_the_floor_is_what_the_original_varies_by() -> None:
    before, again = {"a": scores(0.5)}, {"a": scores(0.5, seed=1)}
    found = recovery_of(before, again, ["a"])
    assert found is not None
    assert noise_floor(before, again, ["a"]) == pytest.approx(max(1 - found.low, found.high - 1))
