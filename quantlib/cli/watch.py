"""``quantlib watch``."""

from __future__ import annotations

import os
import sys

import click

PROGRAM_VARIABLE = "_QUANTLIB_PROGRAM"
"""Environment variable: what the program calls itself in its help."""

_EXAMPLES = """\b
Examples:
  quantlib watch llama-w4.yaml llama-w8.yaml --once --publish-to ./published
  quantlib watch --help
"""


@click.command(
    epilog=_EXAMPLES,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def watch(arguments: tuple[str, ...]) -> None:
    """Quantize every release of watched models; the same as `python -m pipelines watch`."""
    os.environ[PROGRAM_VARIABLE] = "quantlib"
    command = [sys.executable, "-m", "pipelines", "watch", *arguments]
    os.execv(sys.executable, command)
