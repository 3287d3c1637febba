"""A comparison as one self-contained HTML page: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from quantlib import __version__
from quantlib.report.chart import ErrorChart, Mark, lay_out
from quantlib.report.compare import COMPARISON_SCHEMA, Comparison
from quantlib.report.compare_rows import (
    change_rows,
    description_rows,
    error_table,
    figure_rows,
    left_out_note,
)
from quantlib.report.jinja_environment import environment
from quantlib.report.size_chart import size_chart

_SHAPES = {"wide": (1040, 400), "narrow": (400, 320)}


def render_comparison(comparison: Comparison) -> str:
    """The page of a comparison. Whatever text it holds is escaped."""
    sizes = {name: size_chart(comparison.runs, *shape) for name, shape in _SHAPES.items()}
    return (
        environment(autoescape=True)
        .get_template("compare.html.j2")
        .render(
            comparison=comparison,
            runs=comparison.runs,
            figures=figure_rows(comparison),
            descriptions=description_rows(comparison),
            changes=change_rows(comparison),
            sizes=[(name, chart) for name, chart in sizes.items() if chart is not None],
            charts=_error_charts(comparison),
            error_table=error_table(comparison),
            left_out=left_out_note(comparison),
            version=__version__,
            schema=COMPARISON_SCHEMA,
        )
    )


def _error_charts(comparison: Comparison) -> list[tuple[str, ErrorChart]]:
    """The errors of blocks; none where they cannot be compared, or where there are none."""
    if comparison.unlike_errors:
        return []
    marks = [
        Mark(run.letter, block, error)
        for run, errors in zip(comparison.runs, comparison.block_errors, strict=True)
        for block, error in errors.items()
    ]
    blocks = max(run.report.model.blocks for run in comparison.runs)
    quantized = {mark.block for mark in marks}
    charts = {name: lay_out(marks, blocks, quantized, *shape) for name, shape in _SHAPES.items()}
    return [(name, chart) for name, chart in charts.items() if chart is not None]
