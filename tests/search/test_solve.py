"""The least cost, against every choice tried."""

from __future__ import annotations

import itertools
import random

import pytest

from quantlib.search.solve import Option, least_cost, least_size


def random_options(seed: int, count: int = 7) -> list[list[Option]]:
    numbers = random.Random(seed)
    return [
        [
            Option(str(name), numbers.randrange(10**6, 10**9), 10 ** numbers.uniform(-7, -1))
            for name in range(numbers.randrange(1, 4))
        ]
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_the_best_of_all_choices_is_found(seed: int) -> None:
    options = random_options(seed)
    every = [
        (sum(each.size for each in choice), sum(each.cost for each in choice))
        for choice in itertools.product(*options)
    ]
    for share in (0.3, 0.6):
        sizes, costs = (sorted(values) for values in zip(*every, strict=True))
        limit = sizes[int(share * len(sizes))]
        found = least_cost(options, limit)
        assert found is not None
        assert sum(each.size for each in found) <= limit
        best = min(cost for size, cost in every if size <= limit)
        assert sum(each.cost for each in found) == pytest.approx(best, rel=1e-6)
        dear = costs[int(share * len(costs))]
        small = least_size(options, dear * (1 + 1e-6))
        assert small is not None
        least = min(size for size, cost in every if cost <= dear)
        assert sum(each.size for each in small) == pytest.approx(least, rel=1e-6)


def test_what_cannot_be_is_none() -> None:
    options = [[Option("a", 10, 1.0)], [Option("a", 10, 1.0), Option("b", 20, 0.0)]]
    assert least_cost(options, 19) is None
    assert least_size(options, 0.5) is None
