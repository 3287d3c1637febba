"""What figures mean, and what may be done about a refusal."""

from __future__ import annotations

from typing import Any

import pytest

from quantlib.report.build import build_report
from quantlib.report.explain import meaning, remedies
from quantlib.report.html import render_html
from quantlib.report.model import Report, Verdict


def report_of(run: Any, outcome: str, **evaluation: Any) -> Report:
    judged = dict(run.evaluation) | evaluation
    report = build_report(run.store, run.recipe, run.checkpoint, judged, run.validation)
    return report.model_copy(update={"verdict": Verdict(outcome=outcome, reason="why")})


def test_the_sentence_sets_plain_rounding_beside(run) -> None:
    rounding = {"kl_mean": 0.324, "kl_standard_error": 0.004}
    evaluation = report_of(run, "passed", rounding=rounding).evaluation
    assert evaluation is not None
    assert meaning(evaluation) == (
        "At 83.8% of the places in the text the quantized model finds the same word most likely as "
        "its original; its predictions are 0.11 nats away on average, 0.33 times what rounding to "
        "nearest costs in the same scheme (0.32 nats)."
    )
    absent = report_of(run, "passed", rounding={"absent": "it is so"}).evaluation
    assert absent is not None
    assert meaning(absent).endswith("Plain rounding is not shown beside: it is so.")


def test_what_passed_needs_no_remedy(run) -> None:
    assert remedies(report_of(run, "passed")) == []


def test_a_refusal_comes_with_what_to_try(run) -> None:
    report = report_of(run, "regression")
    worst = max(report.linears, key=lambda each: each.relative_error or 0)
    found = remedies(report)
    assert f"{worst.linear} of block {worst.block} " in found[0]
    assert f"linears: [{worst.linear.rpartition('.')[2]}], blocks: [{worst.block}]" in found[0]
    assert "quantization.weights.group_size: 32 in the place of 64" in found[1]
    assert "--budget" in found[2]
    assert not any("num_samples" in remedy for remedy in found)
    assert report.calibration is not None
    few = report.calibration.model_copy(update={"samples": 16})
    assert (
        "More calibration text than 16 windows of"
        in remedies(report.model_copy(update={"calibration": few}))[3]
    )
    page = render_html(report)
    assert "What may help:" in page
    assert "group_size: 32" in page


@pytest.mark.parametrize(
    ("outcome", "first"), [("inconclusive", "Judge on more text: "), ("broken", "Mend what ")]
)
def test_each_verdict_has_its_own_remedy(run, outcome: str, first: str) -> None:
    found = remedies(report_of(run, outcome))
    assert found[0].startswith(first)
    assert outcome == "inconclusive" or len(found) == 1
