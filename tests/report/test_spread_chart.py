"""The chart of how a divergence is spread."""

from __future__ import annotations

import pytest

from quantlib.report.build import build_report
from quantlib.report.evaluation import Spread
from quantlib.report.html import render_html
from quantlib.report.spread_chart import HEIGHT, WIDTH, spread_chart

SPREAD = Spread(
    windows=(0.3, 0.1, 0.2),
    tokens={"0.5": 0.05, "0.9": 0.4, "0.99": 1.5, "0.999": 3.0, "1": 9.25},
    worst=({"window": 0, "position": 7, "text": "once <b>", "token": " upon", "kl": 9.25},),
)


def test_windows_stand_from_the_least_to_the_largest() -> None:
    chart = spread_chart(SPREAD)
    assert [bar.title.partition(":")[0] for bar in chart.bars] == [
        "window 1",
        "window 2",
        "window 0",
    ]
    assert [bar.height for bar in chart.bars] == [
        pytest.approx(HEIGHT / 3, abs=0.01),
        pytest.approx(2 * HEIGHT / 3, abs=0.01),
        HEIGHT,
    ]
    assert all(bar.y + bar.height == pytest.approx(HEIGHT) for bar in chart.bars)
    assert chart.bars[-1].x + chart.bars[-1].width < WIDTH
    assert chart.mean == pytest.approx(HEIGHT - 2 * HEIGHT / 3, abs=0.01)


def test_a_divergence_of_nothing_is_seen() -> None:
    assert spread_chart(SPREAD.model_copy(update={"windows": (0.0, 0.0)})).bars[0].height > 1


def test_the_page_shows_it_with_the_worst_places(run) -> None:
    evaluation = dict(run.evaluation) | {"spread": SPREAD.model_dump(mode="json")}
    report = build_report(run.store, run.recipe, run.checkpoint, evaluation, run.validation)
    page = render_html(report)
    assert page.count('<rect x="') >= 3
    assert "half are below 0.050" in page
    assert "once &lt;b&gt;" in page
    assert "<td> upon</td>" in page
