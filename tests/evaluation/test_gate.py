"""The gate's verdicts."""

from __future__ import annotations

import dataclasses

import pytest

from quantlib.evaluation.gate import Figures, judge
from quantlib.recipe import Thresholds

GOOD = Figures(
    perplexity_original=10.0,
    perplexity_quantized=11.0,
    kl_mean=0.1,
    kl_standard_error=0.003,
    top1_agreement=0.84,
    not_finite=0,
)
THRESHOLDS = Thresholds(max_perplexity_increase=0.15, max_kl_mean=0.2, min_top1_agreement=0.75)
NAN = float("nan")


def test_good_figures_pass() -> None:
    gate = judge(GOOD, THRESHOLDS)
    assert gate.passed
    assert gate.reason == "all 4 checks are within their limits"
    assert gate.to_dict()["checks"][1] == {
        "name": "kl_mean",
        "value": 0.1,
        "limit": 0.2,
        "passed": True,
    }


def test_limits_themselves_pass() -> None:
    figures = dataclasses.replace(GOOD, perplexity_quantized=11.5, kl_mean=0.2, top1_agreement=0.75)
    thresholds = THRESHOLDS.model_copy(
        update={"max_perplexity_increase": figures.perplexity_increase}
    )
    assert judge(figures, thresholds).passed


@pytest.mark.parametrize(
    ("change", "failed", "reason"),
    [
        (
            {"perplexity_quantized": 12.0},
            "perplexity_increase",
            "perplexity rose by 20.0%, more than 15.0%",
        ),
        ({"kl_mean": 0.3125}, "kl_mean", "mean KL divergence is 0.3125 nats, above 0.2"),
        ({"top1_agreement": 0.7}, "top1_agreement", "top-1 agreement is 70.0%, below 75.0%"),
        ({"not_finite": 3}, "not_finite", "3 figures are not finite numbers"),
    ],
)
def test_each_figure_can_fail(change: dict[str, float], failed: str, reason: str) -> None:
    gate = judge(dataclasses.replace(GOOD, **change), THRESHOLDS)
    assert not gate.passed
    assert [check.name for check in gate.checks if not check.passed] == [failed]
    assert gate.reason == reason


@pytest.mark.parametrize(
    "field", ["perplexity_original", "perplexity_quantized", "kl_mean", "top1_agreement"]
)
def test_what_is_no_number_never_passes(field: str) -> None:
    assert not judge(dataclasses.replace(GOOD, **{field: NAN}), THRESHOLDS).passed


def test_infinite_perplexity_fails() -> None:
    figures = dataclasses.replace(GOOD, perplexity_quantized=float("inf"))
    gate = judge(figures, THRESHOLDS)
    assert not gate.passed
    assert "perplexity rose by inf%" in gate.reason


def test_all_failures_are_in_the_reason() -> None:
    figures = dataclasses.replace(GOOD, kl_mean=0.5, top1_agreement=0.1)
    reason = judge(figures, THRESHOLDS).reason
    assert reason == (
        "mean KL divergence is 0.5 nats, above 0.2; top-1 agreement is 10.0%, below 75.0%"
    )


def test_errors_of_linears_have_to_be_finite() -> None:
    linears = [
        {"block": 0, "linear": "mlp.up_proj", "relative_error": 0.01, "damping": None},
        {"block": 1, "linear": "mlp.up_proj", "relative_error": NAN, "damping": 0.01},
    ]
    assert judge(GOOD, THRESHOLDS, linears[:1]).passed
    gate = judge(GOOD, THRESHOLDS, linears)
    assert not gate.passed
    assert gate.reason == "1 figures are not finite numbers"


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
    thresholds = THRESHOLDS.model_copy(update={"max_undercalibrated_experts": 0.5})
    linears = of_experts({(0, 0): 5, (0, 1): 40, (2, 0): 40, (2, 3): 0})
    gate = judge(GOOD, thresholds, linears)
    assert gate.passed
    assert gate.reason == "all 5 checks are within their limits"
    linears += of_experts({(3, 1): 9})
    gate = judge(GOOD, thresholds, linears)
    assert [check.name for check in gate.checks if not check.passed] == ["undercalibrated_experts"]
    assert gate.reason == (
        "too few calibration tokens came to 60.0% of the experts, more than 50.0%: "
        "block 0: 0; block 2: 3; block 3: 1"
    )


def test_many_experts_are_not_all_named() -> None:
    linears = of_experts({(block, expert): 0 for block in range(4) for expert in range(10)})
    reason = judge(GOOD, THRESHOLDS, linears).reason
    assert reason.endswith("block 1: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more")


def test_models_without_counted_experts_have_no_such_check() -> None:
    uncounted = [record | {"expert_tokens": None} for record in of_experts({(0, 0): 0})]
    names = [check.name for check in judge(GOOD, THRESHOLDS, uncounted).checks]
    assert "undercalibrated_experts" not in names


def test_small_and_negative_shares_are_told() -> None:
    figures = dataclasses.replace(GOOD, perplexity_quantized=GOOD.perplexity_original * 1.0004)
    thresholds = THRESHOLDS.model_copy(update={"max_perplexity_increase": 0.0001})
    assert judge(figures, thresholds).reason == "perplexity rose by 0.04%, more than 0.01%"
