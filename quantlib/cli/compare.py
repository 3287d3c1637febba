"""``quantlib compare``."""

from __future__ import annotations

from pathlib import Path

import click

from quantlib.cli.result_options import print_json, progress, result_options
from quantlib.cli.side_by_side import print_comparison, write_comparison
from quantlib.report.compare import compare_runs
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
    run, or a quantization_report.json. Prints a table and which checkpoint to take: the smallest of
    those that passed the gate. Writes a page with charts.
    """
    with progress(quiet=quiet):
        comparison = compare_runs(read_runs(runs))
        write_comparison(comparison, output, f"--output {output}")
    if as_json:
        print_json("comparison", {**comparison.to_json(), "page": str(output)})
        return
    print_comparison(comparison)
    if not comparison.all_validated:
        click.echo(_HINT)
    click.echo(f"page: {output}")
