"""From errors to schemes, and what is refused with the least that is possible."""

from __future__ import annotations

import pytest

from quantlib.errors import InvalidInputError
from quantlib.scheme_rules import SchemeRule
from quantlib.search.candidates import Candidate, Space, Unit
from quantlib.search.choosing import KL_OF_ERROR, budget_problems, choose

FOUR, EIGHT = "W4A16 in groups of 32", "W8A16 in groups of 32"
RULES = (
    SchemeRule(scheme="W4A16", group_size=32),
    SchemeRule(scheme="W8A16", group_size=32),
    SchemeRule(scheme="exact"),
)
CANDIDATES = {candidate.name: candidate for candidate in map(Candidate.of, RULES)}
BYTES = {FOUR: 576, EIGHT: 1088, "exact": 2048}
UNITS = tuple(Unit(block, "mlp", ("mlp",), 1024, BYTES) for block in range(3))
SPACE = Space(CANDIDATES, UNITS, 5000, 1000, 3 * 1024 + 500)
ERRORS = {
    (block, "mlp"): {FOUR: 0.01 * (block + 1), EIGHT: 0.0001 * (block + 1), "exact": 0.0}
    for block in range(3)
}


def test_what_costs_most_gets_the_bits() -> None:
    outcome = choose(SPACE, ERRORS, "7.2kb")
    assert [each.chosen for each in outcome.choices] == [FOUR, FOUR, FOUR]
    outcome = choose(SPACE, ERRORS, "7.3kb")
    assert [each.chosen for each in outcome.choices] == [FOUR, FOUR, EIGHT]
    assert outcome.chosen.bytes == 5000 + 2 * 576 + 1088
    assert outcome.chosen.kl == pytest.approx(KL_OF_ERROR * (0.01 + 0.02 + 0.0003))
    assert outcome.chosen.bits == pytest.approx(8 * (1000 + 2 * 576 + 1088) / 3572)


def test_bits_count_linears_whose_scheme_is_given() -> None:
    limit = 8 * (1000 + 2 * 576 + 1088) / 3572
    outcome = choose(SPACE, ERRORS, f"{limit + 1e-4:.4f}bits")
    assert outcome.chosen.bits == pytest.approx(limit)


def test_for_a_kl_as_little_as_possible() -> None:
    outcome = choose(SPACE, ERRORS, f"kl={KL_OF_ERROR * 0.0305:.5f}")
    assert [each.chosen for each in outcome.choices] == [FOUR, FOUR, EIGHT]


def test_the_curve_is_that_of_the_best_and_the_uniform_ones_lie_on_or_above_it() -> None:
    outcome = choose(SPACE, ERRORS, "7.3kb")
    sizes = [point.bytes for point in outcome.curve]
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 5000 + 3 * 576
    assert sizes[-1] == 5000 + 3 * 2048
    costs = [point.kl for point in outcome.curve]
    assert costs == sorted(costs, reverse=True)
    assert [point.name for point in outcome.uniform] == [FOUR, EIGHT]
    for uniform in outcome.uniform:
        assert all(p.kl <= uniform.kl + 1e-12 for p in outcome.curve if p.bytes >= uniform.bytes)


@pytest.mark.parametrize(
    ("budget", "what", "remedy"),
    [
        ("6kb", "below what the smallest candidates need", "give 0.006731MB or more"),
        ("6.1bits", "below what the smallest candidates need", "6.110bits or more"),
        ("16bits", "enough for all linears as they are", "give less than 16.000bits"),
    ],
)
def test_what_no_search_can_find_is_refused_with_what_it_can(
    budget: str, what: str, remedy: str
) -> None:
    (problem,) = budget_problems(SPACE, budget)
    assert problem.where == "quantization.budget"
    assert what in problem.what
    assert remedy in problem.remedy


def test_a_kl_that_only_exact_weights_have_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="leaves every linear exact"):
        choose(SPACE, ERRORS, "kl=0.0000001")


def test_parts_that_no_candidate_goes_with_are_named() -> None:
    barred = Unit(2, "mlp.down_proj", ("mlp.down_proj",), 1024, {})
    (problem,) = budget_problems(Space(CANDIDATES, (*UNITS, barred), 0, 0, 1), "4bits")
    assert problem.where == "quantization.candidates"
    assert "mlp.down_proj of block 2" in problem.what
