"""Geometry of the chart of errors."""

import math
from itertools import pairwise

import pytest

from quantlib.report.chart import error_chart, summarize
from quantlib.report.model import LinearError
from quantlib.report.text import power_of_ten


def record(block: int, linear: str, error: float | None, weight: float = 0.01) -> LinearError:
    return LinearError(
        block=block,
        linear=linear,
        relative_error=error,
        relative_weight_error=weight,
        damping=None,
        damping_attempts=0,
    )


def test_every_record_is_a_point_inside_the_plot_area() -> None:
    linears = [
        record(block, name, 10.0 ** (-1 - (block % 3)))
        for block in range(120)
        for name in ("q_proj", "up_proj", "down_proj")
    ]
    chart = error_chart(linears, 120, range(120), 1040, 400)
    assert chart is not None
    points = [p for series in chart.series for segment in series.segments for p in segment]
    assert len(points) == len(linears)
    assert all(
        chart.left <= p.x <= chart.right and chart.top <= p.y <= chart.bottom for p in points
    )
    ticks = [*chart.x_ticks, *chart.y_ticks]
    assert all(0 <= tick.at <= 1040 for tick in ticks)


def test_the_scale_is_logarithmic_and_larger_errors_are_higher() -> None:
    linears = [record(block, "q", value) for block, value in enumerate([0.001, 0.01, 0.1])]
    chart = error_chart(linears, 3, range(3), 1000, 400)
    assert chart is not None
    [low, middle, high] = chart.series[0].segments[0]
    assert low.y > middle.y > high.y
    assert low.y - middle.y == pytest.approx(middle.y - high.y, abs=0.02)
    at = {tick.text: tick.at for tick in chart.y_ticks}
    assert at["0.01"] == pytest.approx(middle.y, abs=0.01)
    assert middle.x - low.x == pytest.approx(high.x - middle.x)


def test_unquantized_blocks_break_the_line_and_are_marked() -> None:
    quantized = [1, 2, 5]
    linears = [record(block, "q", 0.01) for block in quantized]
    chart = error_chart(linears, 7, quantized, 1000, 400)
    assert chart is not None
    assert [len(segment) for segment in chart.series[0].segments] == [2, 1]
    assert [band.text for band in chart.bands] == [
        "block 0 kept exact",
        "blocks 3 to 4 kept exact",
        "block 6 kept exact",
    ]
    width = (chart.right - chart.left) / 7
    assert chart.bands[1].width == pytest.approx(2 * width, abs=0.01)
    assert not any(
        band.x < point.x < band.x + band.width
        for band in chart.bands
        for segment in chart.series[0].segments
        for point in segment
    )


def test_a_single_error_still_gets_two_labels() -> None:
    chart = error_chart([record(0, "q", 0.0123)], 1, [0], 1000, 400)
    assert chart is not None
    assert len(chart.y_ticks) >= 2
    assert chart.x_ticks[0].at == pytest.approx((chart.left + chart.right) / 2)


def test_errors_that_a_logarithm_cannot_show_are_drawn_at_the_ends() -> None:
    linears = [record(b, "q", error) for b, error in enumerate([0.0, 0.01, math.inf, math.nan])]
    chart = error_chart(linears, 4, range(4), 1000, 400)
    assert chart is not None
    zero, _, infinite, undefined = chart.series[0].segments[0]
    assert zero.y == chart.bottom
    assert infinite.y == undefined.y == chart.top


def test_without_output_errors_the_weight_error_is_drawn() -> None:
    linears = [record(0, "q", None, weight=0.02), record(1, "q", None, weight=0.04)]
    chart = error_chart(linears, 2, range(2), 1000, 400)
    assert chart is not None
    assert [p.title for p in chart.series[0].segments[0]] == [
        "block 0, q: 0.0200",
        "block 1, q: 0.0400",
    ]
    assert error_chart([], 2, [], 1000, 400) is None


@pytest.mark.parametrize(("blocks", "width"), [(1, 400), (30, 400), (120, 400), (120, 1040)])
def test_block_labels_never_crowd(blocks: int, width: int) -> None:
    chart = error_chart([record(0, "q", 0.01)], blocks, range(blocks), width, 300)
    assert chart is not None
    at = [tick.at for tick in chart.x_ticks]
    assert all(later - earlier >= 40 for earlier, later in pairwise(at))
    assert chart.x_ticks[0].text == "0"


def test_wide_spans_are_labelled_by_powers_of_ten() -> None:
    linears = [record(block, "q", 10.0**-block) for block in range(1, 8)]
    chart = error_chart(linears, 8, range(8), 1000, 400)
    assert chart is not None
    assert [tick.text for tick in chart.y_ticks] == [
        *(power_of_ten(power) for power in (-7, -6, -5)),
        *("0.0001", "0.001", "0.01", "0.1"),
    ]


def test_summary_gives_median_worst_block_and_damping() -> None:
    linears = [
        record(0, "q", 0.01).model_copy(update={"damping": 0.01, "damping_attempts": 1}),
        record(1, "q", 0.05).model_copy(update={"damping": 0.1, "damping_attempts": 2}),
        record(2, "q", 0.02).model_copy(update={"damping": 0.01, "damping_attempts": 1}),
    ]
    [row] = summarize(linears)
    assert (row.linear, row.count, row.error_median, row.worst.block) == ("q", 3, 0.02, 1)
    assert (row.dampings, row.raised) == ((0.01, 0.1), 1)


def of_expert(block: int, expert: int, error: float) -> LinearError:
    return record(block, f"mlp.experts.{expert}.up_proj", error).model_copy(
        update={"expert": expert, "expert_tokens": 5, "calibrated_on": "routed"}
    )


def test_experts_of_a_block_are_one_point_and_one_row() -> None:
    linears = [
        record(0, "self_attn.o_proj", 0.01),
        *(of_expert(0, expert, error) for expert, error in enumerate((0.1, 0.2, 0.9))),
        of_expert(1, 0, 0.3),
    ]
    chart = error_chart(linears, 2, range(2), 400, 300)
    assert chart is not None
    assert [series.line for series in chart.series] == ["self_attn.o_proj", "mlp.experts.*.up_proj"]
    (segment,) = chart.series[1].segments
    assert [point.title.rpartition(" ")[2] for point in segment] == ["0.200", "0.300"]
    row = summarize(linears)[1]
    assert (row.linear, row.count, row.worst.linear) == (
        "mlp.experts.*.up_proj",
        4,
        "mlp.experts.2.up_proj",
    )
    assert row.error_median == pytest.approx(0.25)
