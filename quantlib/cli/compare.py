"""``quantlib compare``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from quantlib.cli.result_options import print_json, progress, result_options
from quantlib.errors import InvalidInputError
from quantlib.report.compare import Comparison, compare_runs
from quantlib.report.compare_rows import Row, description_rows, figure_rows
from quantlib.report.run_reports import read_runs

_HINT = (
    "note: runs that are not validated lack figures; "
    "`quantlib quantize --validate --overwrite` adds them"
)
_EXAMPLES = """\b
Examples:
  quantlib compare ./Llama-W8A8 ./Llama-W8A8-smooth
  quantlib compare ./published/llama/4f2a... .quantlib/runs/20260101-120000-7
  quantlib compare ./a/quantization_report.json ./b --json
"""


@click.command(epilog=_EXAMPLES)
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--output",
    default="comparison.html",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The HTML page to write.",
)
@result_options
def compare(runs: tuple[Path, ...], output: Path, as_json: bool, quiet: bool) -> None:
    """Compare RUNS: two or more, the first is what the others are compared with.

    A run is a folder that `quantlib quantize` wrote, a published checkpoint, a folder of a pipeline
    run, or a quantization_report.json. Prints a table and writes a page with charts.
    """
    from quantlib.report.compare_html import render_comparison

    with progress(quiet=quiet):
        comparison = compare_runs(read_runs(runs))
        _write(output, render_comparison(comparison))
    if as_json:
        print_json("comparison", {**comparison.to_json(), "page": str(output)})
    else:
        _print(comparison)
        click.echo(f"page: {output}")


def _write(output: Path, text: str) -> None:
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=output.parent, prefix=f".{output.name}.", delete=False
        ) as file:
            file.write(text)
        os.chmod(file.name, 0o644)
        os.replace(file.name, output)
    except OSError as error:
        raise InvalidInputError.one(
            f"--output {output}", f"cannot be written: {error.strerror}", "choose another"
        ) from None


def _print(comparison: Comparison) -> None:
    console = Console(highlight=False, soft_wrap=False)
    for rows in (description_rows(comparison), figure_rows(comparison)):
        console.print(_table(comparison, rows))
    for sentence in comparison.unfair:
        console.print(f"not a fair comparison: {sentence}", markup=False)
    for sentence in comparison.unlike_errors:
        console.print(f"note: {sentence}", markup=False)
    if not comparison.all_validated:
        console.print(_HINT, markup=False)


def _table(comparison: Comparison, rows: list[Row]) -> Table:
    names = [f"{run.letter} {run.name}" for run in comparison.runs]
    table = Table("", *names, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        cells = (f"{cell.value}\n{cell.beside}".rstrip() for cell in row.cells)
        table.add_row(row.name, *cells)
    return table
