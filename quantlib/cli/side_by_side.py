"""Checkpoints beside each other, as commands print and write them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from quantlib.errors import InvalidInputError
from quantlib.report.compare import Comparison
from quantlib.report.compare_rows import Row, description_rows, figure_rows


def print_comparison(comparison: Comparison) -> None:
    """Prints the tables, what is unfair in them, and the conclusion last."""
    console = Console(highlight=False, soft_wrap=False)
    for rows in (description_rows(comparison), figure_rows(comparison)):
        console.print(_table(comparison, rows))
    for sentence in comparison.unfair:
        click.echo(f"not a fair comparison: {sentence}")
    for sentence in comparison.unlike_errors:
        click.echo(f"note: {sentence}")
    click.echo(f"conclusion: {' '.join(comparison.conclusion.sentences)}")


def write_comparison(comparison: Comparison, page: Path, option: str) -> None:
    """Writes the page, whole or not at all.

    Args:
        comparison: What it shows.
        page: Where it goes.
        option: The command's option that said so.

    Raises:
        InvalidInputError: It cannot be written.
    """
    from quantlib.report.compare_html import render_comparison

    text = render_comparison(comparison)
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=page.parent, prefix=f".{page.name}.", delete=False
        ) as file:
            file.write(text)
        os.chmod(file.name, 0o644)
        os.replace(file.name, page)
    except OSError as error:
        raise InvalidInputError.one(
            option, f"cannot be written: {error.strerror}", "choose another"
        ) from None


def _table(comparison: Comparison, rows: list[Row]) -> Table:
    names = [f"{run.letter} {run.name}" for run in comparison.runs]
    table = Table("", *names, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        cells = (f"{cell.value}\n{cell.beside}".rstrip() for cell in row.cells)
        table.add_row(row.name, *cells)
    return table
