"""Which places of the held-out text are picked as probes."""

import torch

from quantlib.evaluation.metrics import Leads
from quantlib.evaluation.probes import pick


def leads(tokens: list[int], margins: list[float]) -> Leads:
    return Leads(torch.tensor(tokens), torch.tensor(margins))


def test_a_probe_is_where_the_model_is_sure_by_a_nat() -> None:
    found = pick([leads([5, 6, 7], [1.0, 0.99, 3.0]), leads([8, 9], [float("nan"), 1.5])])
    # The first state predicts what is at position 1.
    assert found == [(0, 1, 5), (0, 3, 7), (1, 2, 9)]


def test_they_are_spread_over_windows_and_positions() -> None:
    found = pick([leads(list(range(w * 200, w * 200 + 200)), [2.0] * 200) for w in range(4)])
    assert len(found) == len(set(found)) == 64
    assert found == sorted(found)
    assert all(token == window * 200 + position - 1 for window, position, token in found)
    for window in range(4):
        positions = [position for of, position, _ in found if of == window]
        assert 8 <= len(positions) <= 24
        assert min(positions) < 60
        assert max(positions) > 140


def test_what_a_broken_model_always_says_is_not_all_that_is_asked() -> None:
    tokens = [3] * 100 + list(range(50, 60))
    found = pick([leads(tokens, [2.0] * 110)])
    assert [token for _, _, token in found].count(3) == 4
    assert {token for _, _, token in found} == {3, *range(50, 60)}


def test_a_model_that_is_never_sure_gives_none() -> None:
    assert pick([leads([1, 2], [0.5, 0.1])]) == []
    assert pick([]) == []
