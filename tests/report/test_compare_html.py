"""The page of a comparison, read back by parsers."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from quantlib.report.build import build_report
from quantlib.report.compare import Comparison, compare_runs
from quantlib.report.compare_html import render_comparison
from quantlib.report.model import Report
from quantlib.report.run_reports import Run


@pytest.fixture
def reports(run) -> list[dict[str, Any]]:
    made = build_report(run.store, run.recipe, run.checkpoint, run.evaluation, run.validation)
    return [json.loads(made.to_json()) for _ in range(2)]


def comparison_of(reports: list[dict[str, Any]], name: str = "second") -> Comparison:
    names = ("first", name)
    return compare_runs(
        [
            Run(letter, name, Report.from_json(json.dumps(report)))
            for letter, name, report in zip("AB", names, reports, strict=True)
        ]
    )


def charts_of(html: str) -> dict[str, ElementTree.Element]:
    found = re.findall(r'(<svg class="chart (\w+)".*?</svg>)', html, re.DOTALL)
    return {name: ElementTree.fromstring(svg) for svg, name in found}


def test_one_line_per_run_inside_the_drawing(reports) -> None:
    charts = charts_of(render_comparison(comparison_of(reports)))
    assert set(charts) == {"wide", "narrow"}
    for chart in charts.values():
        _, _, width, height = map(float, chart.attrib["viewBox"].split())
        assert len(chart.findall("g")) == 2
        assert len(chart.findall("g/polyline")) == 2
        markers = chart.findall(".//use")
        assert len(markers) == 12
        for marker in markers:
            assert 0 <= float(marker.attrib["x"]) < width
            assert 0 <= float(marker.attrib["y"]) < height
        shapes = {marker.attrib["href"] for marker in markers}
        assert shapes == {"#marker0", "#marker1"}  # lines differ by more than colour
        title = markers[-1].find("title")
        assert title is not None and title.text is not None
        assert title.text.startswith("block 5, B: ")


def test_what_is_unfair_or_missing_is_said_before_the_figures(reports) -> None:
    html = render_comparison(comparison_of(reports))
    assert "Not a fair comparison" not in html and "Figures are missing" not in html
    reports[1]["model"]["digest"] = "sha256:" + "0d" * 32
    reports[0]["evaluation"] = None
    html = render_comparison(comparison_of(reports))
    figures = html.index("<h2>Measured</h2>")
    assert html.index("Not a fair comparison") < figures
    assert html.index("<code>--validate</code>") < figures


def test_names_are_escaped_and_nothing_is_loaded(reports) -> None:
    html = render_comparison(comparison_of(reports, "<script>alert(1)</script>"))
    assert "<script" not in html and "&lt;script&gt;alert(1)" in html
    assert "url(" not in html and "@import" not in html
    assert all(value.startswith("#marker") for value in re.findall(r'(?:href|src)="(.*?)"', html))


def test_every_cell_tells_its_run(reports) -> None:
    """On narrow screens a table becomes a list, with the run's letter before each value."""
    html = render_comparison(comparison_of(reports))
    letters = re.findall(r'<td data-run="(.)">', html)
    assert letters == ["A", "B"] * (len(letters) // 2) and len(letters) > 20
    assert "<td>" not in html


def test_the_table_of_blocks_holds_what_the_chart_shows(reports) -> None:
    html = render_comparison(comparison_of(reports))
    rows = re.findall(r'<tr><th scope="row">(\d)</th><td class="number">(\S+)</td>', html)
    assert [block for block, _ in rows] == list("012345")
    comparison = comparison_of(reports)
    assert float(rows[2][1]) == pytest.approx(comparison.block_errors[0][2], rel=0.01)


def test_runs_without_a_common_linear_have_no_chart(reports) -> None:
    reports[1]["linears"] = []
    html = render_comparison(comparison_of(reports))
    assert not charts_of(html)
    assert "No linear is quantized in every run." in html


def test_ids_are_unique(reports, tmp_path: Path) -> None:
    ids = re.findall(r' id="(.*?)"', render_comparison(comparison_of(reports)))
    assert len(ids) == len(set(ids)) > 7


def test_errors_that_cannot_be_compared_are_not_drawn(reports) -> None:
    for record in reports[1]["linears"]:
        record["relative_error"] = None
    html = render_comparison(comparison_of(reports))
    assert not charts_of(html)
    assert "not every method knows those of outputs: A: of outputs; B: of weights." in html
    assert "No linear is quantized in every run." not in html


def test_the_conclusion_and_a_mark_for_every_checkpoint(reports) -> None:
    reports[1]["sizes"]["bytes_quantized"] //= 2
    html = render_comparison(comparison_of(reports))
    assert "<strong>Take B (second): it is the smallest of the 2 that passed the gate" in html
    found = re.findall(r'(<svg class="chart (\w+) sizes".*?</svg>)', html, re.DOTALL)
    assert [name for _, name in found] == ["wide", "narrow"]
    for svg, _ in found:
        chart = ElementTree.fromstring(svg)
        _, _, width, height = map(float, chart.attrib["viewBox"].split())
        first, second = chart.findall("g/use")
        assert (first.attrib["href"], second.attrib["href"]) == ("#marker0", "#marker1")
        assert 0 < float(second.attrib["x"]) < float(first.attrib["x"]) < width - 14
        assert 0 < float(first.attrib["y"]) == float(second.attrib["y"]) < height - 14
    reports[1]["evaluation"] = None
    assert "sizes-wide-title" not in render_comparison(comparison_of(reports))
