"""``quantlib convert``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from quantlib.cli.result_options import print_json, progress, result_options

_EXAMPLES = """\b
Examples:
  quantlib convert --model ./Llama-AWQ --format compressed-tensors --output ./Llama-CT
  quantlib convert --model ./Llama-GPTQ --format awq --output ./Llama-AWQ
"""


@click.command(epilog=_EXAMPLES)
@click.option(
    "--model",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A checkpoint in gptq, awq or compressed-tensors, of any tool's making.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder to write: one that is not there, or an empty one.",
)
@click.option(
    "--format", "format_", required=True, help="awq, gptq or compressed-tensors: what to write."
)
@result_options
def convert(model: Path, output: Path, format_: str, as_json: bool, quiet: bool) -> None:
    """Write a quantized checkpoint in another format that can hold its numbers.

    Nothing is rounded: its dequantized weights are those of the checkpoint, bit for bit. Refused
    where the format, or vLLM reading it, could not hold it.
    """
    from quantlib.conversion import convert as converted
    from quantlib.report.text import plural, size

    with progress(quiet=quiet):
        done = converted(model, output, format_)
    if as_json:
        print_json("convert", asdict(done))
        return
    linears = plural(done.linears, "linear")
    click.echo(f"{output}: {linears}, {size(done.bytes_before)} -> {size(done.bytes_after)}")
