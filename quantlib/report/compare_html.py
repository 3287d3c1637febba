"""A comparison as one self-contained HTML page: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from quantlib import __version__
from quantlib.report.chart import Mark, lay_out
from quantlib.report.compare import COMPARISON_SCHEMA, Comparison
from quantlib.report.compare_rows import (
    change_rows,
    description_rows,
    error_table,
    figure_rows,
    left_out_note,
)
from quantlib.report.jinja_environment import environment

_WIDE = (1040, 400)
_NARROW = (400, 320)


def render_comparison(comparison: Comparison) -> str:
    """The page of a comparison. Whatever text it holds is escaped."""
    marks = [
        Mark(run.letter, block, error)
        for run, errors in zip(comparison.runs, comparison.block_errors, strict=True)
        for block, error in errors.items()
    ]
    blocks = max(run.report.model.blocks for run in comparison.runs)
    quantized = {mark.block for mark in marks}
    charts = [
        ("wide", lay_out(marks, blocks, quantized, *_WIDE)),
        ("narrow", lay_out(marks, blocks, quantized, *_NARROW)),
    ]
    return (
        environment(autoescape=True)
        .get_template("compare.html.j2")
        .render(
            comparison=comparison,
            runs=comparison.runs,
            figures=figure_rows(comparison),
            descriptions=description_rows(comparison),
            changes=change_rows(comparison),
            charts=[(name, chart) for name, chart in charts if chart is not None],
            error_table=error_table(comparison),
            left_out=left_out_note(comparison),
            version=__version__,
            schema=COMPARISON_SCHEMA,
        )
    )
