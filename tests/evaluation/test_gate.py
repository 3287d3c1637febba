"""The gate's verdicts."""

from __future__ import annotations

import dataclasses

import pytest

from quantlib.evaluation.figures import Figure, Figures
from quantlib.evaluation.gate import judge
from quantlib.evaluation.limits import Limit, Limits

GOOD = Figures(
    perplexity_original=10.0,
    perplexity_quantized=11.0,
    perplexity_increase=Figure(0.1, 0.01),
    kl=Figure(0.1, 0.003),
    top1=Figure(0.84, 0.004),
    times_rounding=Figure(0.33, 0.01),
    rounding_kl=Figure(0.3, 0.01),
    not_finite=0,
    windows=8,
)
LIMITS = Limits(
    perplexity_increase=Limit(0.15, "by size"),
    kl_mean=Limit(0.2, "by size"),
    top1_agreement=Limit(0.75, "by size"),
    times_rounding=Limit(0.75, "by method"),
    undercalibrated_experts=Limit(0.25, "the recipe's"),
)
NAN = float("nan")


def test_good_figures_pass() -> None:
    gate = judge(GOOD, LIMITS)
    assert gate.outcome == "passed"
    assert gate.passed
    assert gate.reason == "all 4 checks are within their limits"
    assert gate.to_dict()["checks"][1] == {
        "name": "kl_mean",
        "value": 0.1,
        "low": pytest.approx(0.094),
        "high": pytest.approx(0.106),
        "limit": 0.2,
        "source": "by size",
        "outcome": "passed",
        "passed": True,
    }


def test_the_whole_interval_has_to_be_within_the_limit() -> None:
    at_the_limit = dataclasses.replace(GOOD, kl=Figure(0.194, 0.003))
    assert judge(at_the_limit, LIMITS).outcome == "passed"
    open_ = judge(dataclasses.replace(GOOD, kl=Figure(0.1945, 0.003)), LIMITS)
    assert open_.outcome == "inconclusive"
    assert not open_.passed
    assert open_.reason == (
        "8 windows of text do not tell: mean KL divergence in nats may be 0.1885 to 0.2005, and "
        "the limit is 0.2"
    )


def test_a_figure_above_its_limit_is_no_regression_until_the_interval_is() -> None:
    assert judge(dataclasses.replace(GOOD, kl=Figure(0.205, 0.003)), LIMITS).outcome == (
        "inconclusive"
    )
    assert judge(dataclasses.replace(GOOD, kl=Figure(0.207, 0.003)), LIMITS).outcome == "regression"


@pytest.mark.parametrize(
    ("change", "failed", "reason"),
    [
        (
            {"perplexity_increase": Figure(0.2, 0.01)},
            "perplexity_increase",
            "perplexity rose by 20.0%, more than 15.0%",
        ),
        ({"kl": Figure(0.3125, 0)}, "kl_mean", "mean KL divergence is 0.3125 nats, above 0.2"),
        ({"top1": Figure(0.7, 0.01)}, "top1_agreement", "top-1 agreement is 70.0%, below 75.0%"),
        (
            {"times_rounding": Figure(0.9, 0.02)},
            "times_rounding",
            "mean KL divergence is 0.9 times that of plain rounding, more than 0.75 times",
        ),
    ],
)
def test_each_figure_can_fail(change: dict[str, Figure], failed: str, reason: str) -> None:
    gate = judge(dataclasses.replace(GOOD, **change), LIMITS)
    assert gate.outcome == "regression"
    assert [check.name for check in gate.checks if not check.passed] == [failed]
    assert gate.reason == reason


@pytest.mark.parametrize("field", ["perplexity_increase", "kl", "top1", "times_rounding"])
def test_each_figure_can_leave_it_open(field: str) -> None:
    gate = judge(
        dataclasses.replace(GOOD, **{field: Figure(getattr(GOOD, field).value, 1)}), LIMITS
    )
    assert gate.outcome == "inconclusive"
    assert gate.reason.startswith("8 windows of text do not tell: ")


@pytest.mark.parametrize("field", ["perplexity_increase", "kl", "top1", "times_rounding"])
def test_what_is_no_number_never_passes(field: str) -> None:
    figures = dataclasses.replace(GOOD, **{field: Figure(NAN, NAN)})
    assert judge(figures, LIMITS).outcome == "regression"


def test_infinite_perplexity_fails() -> None:
    infinite = Figure(float("inf"), NAN)
    gate = judge(dataclasses.replace(GOOD, perplexity_increase=infinite), LIMITS)
    assert gate.outcome == "regression"
    assert "perplexity rose by inf%" in gate.reason


def test_all_failures_are_in_the_reason_and_nothing_that_is_open() -> None:
    figures = dataclasses.replace(
        GOOD, kl=Figure(0.5, 0), top1=Figure(0.1, 0), times_rounding=Figure(0.75, 1)
    )
    assert judge(figures, LIMITS).reason == (
        "mean KL divergence is 0.5 nats, above 0.2; top-1 agreement is 10.0%, below 75.0%"
    )


def test_what_is_broken_is_said_before_all_figures() -> None:
    figures = dataclasses.replace(GOOD, kl=Figure(0.5, 0))
    gate = judge(figures, LIMITS, broken=["the chat template does not render"])
    assert (gate.outcome, gate.reason) == ("broken", "the chat template does not render")
    assert gate.to_dict()["broken"] == ["the chat template does not render"]


def test_figures_that_are_no_numbers_break_it() -> None:
    gate = judge(dataclasses.replace(GOOD, not_finite=3), LIMITS)
    assert (gate.outcome, gate.reason) == ("broken", "3 figures are no finite numbers")


def test_errors_of_linears_have_to_be_finite() -> None:
    linears = [
        {"block": 0, "linear": "mlp.up_proj", "relative_error": 0.01, "damping": None},
        {"block": 1, "linear": "mlp.up_proj", "relative_error": NAN, "damping": 0.01},
    ]
    assert judge(GOOD, LIMITS, linears[:1]).passed
    gate = judge(GOOD, LIMITS, linears)
    assert (gate.outcome, gate.reason) == ("broken", "1 figure is no finite number")


def test_rounding_is_left_out_where_it_was_not_looked_at() -> None:
    gate = judge(dataclasses.replace(GOOD, times_rounding=None, rounding_kl=None), LIMITS)
    assert [check.name for check in gate.checks] == [
        "perplexity_increase",
        "kl_mean",
        "top1_agreement",
    ]


def of_experts(tokens: dict[tuple[int, int], int]) -> list[dict[str, object]]:
    """Records of experts, of which fewer than 10 tokens are too few."""
    return [
        {
            "block": block,
            "linear": f"mlp.experts.{expert}.{name}",
            "relative_error": 0.01,
            "expert": expert,
            "expert_tokens": count,
            "calibrated_on": "all" if count < 10 else "routed",
        }
        for (block, expert), count in tokens.items()
        for name in ("gate_proj", "up_proj", "down_proj")
    ]


def test_experts_with_too_few_tokens_can_fail_it() -> None:
    limits = dataclasses.replace(LIMITS, undercalibrated_experts=Limit(0.5, "the recipe's"))
    linears = of_experts({(0, 0): 5, (0, 1): 40, (2, 0): 40, (2, 3): 0})
    gate = judge(GOOD, limits, linears)
    assert gate.passed
    assert gate.reason == "all 5 checks are within their limits"
    linears += of_experts({(3, 1): 9})
    gate = judge(GOOD, limits, linears)
    assert [check.name for check in gate.checks if not check.passed] == ["undercalibrated_experts"]
    assert gate.reason == (
        "too few calibration tokens came to 60.0% of the experts, more than 50.0%: "
        "block 0: 0; block 2: 3; block 3: 1"
    )


def test_many_experts_are_not_all_named() -> None:
    linears = of_experts({(block, expert): 0 for block in range(4) for expert in range(10)})
    reason = judge(GOOD, LIMITS, linears).reason
    assert reason.endswith("block 1: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more")


def test_models_without_counted_experts_have_no_such_check() -> None:
    uncounted = [record | {"expert_tokens": None} for record in of_experts({(0, 0): 0})]
    names = [check.name for check in judge(GOOD, LIMITS, uncounted).checks]
    assert "undercalibrated_experts" not in names


def test_small_shares_are_told() -> None:
    figures = dataclasses.replace(GOOD, perplexity_increase=Figure(0.0004, 0))
    limits = dataclasses.replace(LIMITS, perplexity_increase=Limit(0.0001, "the recipe's"))
    assert judge(figures, limits).reason == "perplexity rose by 0.04%, more than 0.01%"
