"""``--json`` and ``--quiet``: what a command prints besides its errors."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any, TypeVar

import click

from quantlib.verdicts import EXIT_CODES

if TYPE_CHECKING:
    from quantlib.report.model import Report

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON object."
)
quiet_option = click.option(
    "--quiet", is_flag=True, help="Print no progress: the result and errors alone."
)


def result_options(command: Command) -> Command:
    """Adds both options to a command, as ``as_json`` and ``quiet``."""
    return json_option(quiet_option(command))


def print_json(kind: str, result: Mapping[str, Any]) -> None:
    """Prints the result of a command: one object, with its schema first.

    A number that is not finite is null, which JSON can hold.
    """
    click.echo(json.dumps({"schema": f"quantlib/{kind}/1", **_finite(result)}, indent=1))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def progress(*, quiet: bool) -> Iterator[None]:
    """Lets what is done here say how far it is on standard error, or nothing."""
    if not quiet:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
        yield


def result_of(report: Report) -> dict[str, Any]:
    """The verdict and the figures of a report, as every command gives them."""
    from quantlib.report.text import figures_of

    return {
        "verdict": report.verdict.outcome,
        "reason": report.verdict.reason,
        "figures": figures_of(report.evaluation) if report.evaluation else None,
        "checkpoint": report.provenance.checkpoint_digest,
        "bytes_original": report.sizes.bytes_original,
        "bytes_quantized": report.sizes.bytes_quantized,
    }


def exit_where_refused(report: Report) -> None:
    """Ends the program where the gate refused a checkpoint, after its result was printed."""
    if report.verdict.refused:
        outcome = report.verdict.outcome
        click.echo(f"error: refused by the gate: {outcome}: {report.verdict.reason}", err=True)
        sys.exit(EXIT_CODES[outcome])
