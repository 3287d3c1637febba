"""The chart of sizes and divergences: what lies where, and names that can be read."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from quantlib.report.build import build_report
from quantlib.report.model import Report
from quantlib.report.run_reports import Run
from quantlib.report.size_chart import SizeChart, size_chart

MIB = 1024**2
Make = Callable[..., Run]


@pytest.fixture
def make(run) -> Make:
    content = build_report(run.store, run.recipe, run.checkpoint, run.evaluation).to_json()

    def made(letter: str, mebibytes: float, kl: float | None, error: float = 0.0) -> Run:
        data: dict[str, Any] = json.loads(content)
        data["sizes"]["bytes_quantized"] = round(mebibytes * MIB)
        if kl is None:
            data["evaluation"] = None
        else:
            data["evaluation"] |= {"kl_mean": kl, "kl_standard_error": error}
            data["verdict"]["outcome"] = "passed" if kl < 0.2 else "regression"
        return Run(letter, letter, Report.from_json(json.dumps(data)))

    return made


def drawn(*runs: Run, width: float = 400, height: float = 320) -> SizeChart:
    chart = size_chart(runs, width, height)
    assert chart is not None
    return chart


def test_smaller_lies_to_the_left_and_closer_below(make: Make) -> None:
    runs = make("A", 100, 0.02, 0.004), make("B", 60, 0.05), make("C", 40, 0.32)
    for width in (400.0, 1040.0):
        chart = drawn(*runs, width=width)
        first, second, third = chart.dots
        assert chart.left < third.x < second.x < first.x < chart.right
        assert chart.top < third.y < second.y < first.y < chart.bottom
        # Two standard errors to both sides.
        assert first.high < first.y < first.low
        assert second.high == second.y == second.low
        assert [dot.name for dot in chart.dots] == ["A", "B", "C regression"]
        assert [dot.end for dot in chart.dots] == [True, False, False]
        assert third.title == "C C: 40.0 MiB, KL divergence 0.320 nats, regression"


def test_the_scale_of_divergences_is_logarithmic(make: Make) -> None:
    chart = drawn(make("A", 100, 0.01), make("B", 60, 0.1), make("C", 40, 1.0))
    low, middle, high = (dot.y for dot in chart.dots)
    assert low - middle == pytest.approx(middle - high, abs=0.2)


def test_sizes_have_labels_in_one_unit(make: Make) -> None:
    texts = [tick.text for tick in drawn(make("A", 116, 0.1), make("B", 82, 0.1)).x_ticks]
    assert texts == ["80 MiB", "100 MiB"]
    large = drawn(make("A", 1500, 0.1), make("B", 4000, 0.1), width=1040)
    assert [tick.text for tick in large.x_ticks] == [
        "1.5 GiB", "2 GiB", "2.5 GiB", "3 GiB", "3.5 GiB", "4 GiB",
    ]  # fmt: skip


def test_labels_of_sizes_do_not_touch(make: Make) -> None:
    for width in (400.0, 1040.0):
        for other in (0.5, 60.0, 61.0, 999.0, 5000.0, 140_000.0):
            chart = drawn(make("A", 60, 0.1), make("B", other, 0.05), width=width)
            places = [tick.at for tick in chart.x_ticks]
            assert len(places) >= 1
            assert all(after - before > 60 for before, after in pairwise(places))
            assert all(chart.left <= place <= chart.right for place in places)


def test_names_of_equal_checkpoints_are_apart(make: Make) -> None:
    first, second = drawn(make("A", 60, 0.1), make("B", 60, 0.1)).dots
    assert (first.x, first.y) == (second.x, second.y)
    assert abs(first.name_y - second.name_y) >= 16.9


def test_what_was_not_judged_is_left_out(make: Make) -> None:
    runs = make("A", 60, 0.1), make("B", 50, None), make("C", 40, 0.0)
    chart = drawn(*runs)
    assert [(dot.index, dot.name) for dot in chart.dots] == [(0, "A"), (2, "C")]
    assert chart.dots[1].y == chart.bottom
    assert size_chart(runs[:2], 400, 320) is None
    assert size_chart([runs[2], runs[2]], 400, 320) is None
