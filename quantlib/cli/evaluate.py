"""``quantlib evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantlib.cli.result_options import (
    exit_where_refused,
    print_json,
    progress,
    result_of,
    result_options,
)
from quantlib.errors import InvalidInputError, Problem

if TYPE_CHECKING:
    from quantlib.recipe import ValidationSection
    from quantlib.report.model import Report

_EXAMPLES = """\b
Examples:
  quantlib evaluate --model ./Llama-W4 --original ./Llama
  quantlib evaluate --model hf://org/Llama-AWQ@main --original hf://meta/Llama@main --output judged
  quantlib evaluate --model s3://models/llama/4f2a... --original ./Llama --num-samples 40 --json
"""


@click.command(epilog=_EXAMPLES)
@click.option(
    "--model",
    required=True,
    help="The quantized checkpoint: a folder, hf://org/name@rev, or s3://bucket/prefix.",
)
@click.option("--original", required=True, help="What it was made of: the same, or a .gguf file.")
@click.option(
    "--recipe",
    help="A file, or the name of a recipe that ships: its validation section says what is judged "
    "by.  [default: the default of every field]",
)
@click.option(
    "--engine", type=click.Choice(["vllm", "transformers"]), help="In the place of the recipe's."
)
@click.option("--dataset", help="Held-out text, in the place of the recipe's.")
@click.option("--num-samples", type=int, help="Windows of text, in the place of the recipe's.")
@click.option("--sequence-length", type=int, help="Tokens in a window, likewise.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="GPUs that each of the two models is spread over.",
)
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    default=".quantlib/store",
    show_default=True,
    help="Keeps the models and what the original says, for the next checkpoint of it.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the report there, as quantization_report.json and .html.",
)
@result_options
def evaluate(
    model: str,
    original: str,
    recipe: str | None,
    device: str,
    gpus: int,
    store: Path,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Judge a quantized checkpoint against its original on held-out text.

    The checkpoint may be one that quantlib wrote or published, or anybody's in a format that is
    read: compressed-tensors, AWQ, GPTQ, FP8, MXFP4. It is judged as the validate step judges.
    Exits with 3 where the gate refuses it.
    """
    from quantlib.manager import judge_checkpoint
    from quantlib.store import LocalStore

    section = _section(recipe, options)
    _require_possible(section, model, original, store, output, device, gpus)
    with progress(quiet=quiet):
        report = judge_checkpoint(section, model, original, LocalStore(store), device, gpus)
    page = None if output is None else _write(report, output)
    if as_json:
        print_json("evaluate", {**result_of(report), "report": page and str(page)})
    else:
        _print(report, page)
    exit_where_refused(report)


def _section(recipe: str | None, options: dict[str, Any]) -> ValidationSection:
    """What to judge by: the recipe's section, with the options in it."""
    from quantlib.checks.recipe import load_recipe, parse_recipe

    section = load_recipe(recipe).validation.model_dump(mode="json") if recipe else {}
    section |= {name: value for name, value in options.items() if value is not None}
    return parse_recipe({"validation": section}, origin=recipe or "options").validation


def _require_possible(
    section: ValidationSection,
    model: str,
    original: str,
    store: Path,
    output: Path | None,
    device: str,
    gpus: int,
) -> None:
    from quantlib.checks.machine import destination_problems
    from quantlib.evaluation.choose_engine import choose_engine
    from quantlib.runtime.devices import resolve_device
    from quantlib.sources import GgufAddress, parse_address, source_problems

    problems = source_problems(model) + source_problems(original)
    if not problems and isinstance(parse_address(model), GgufAddress):
        problems.append(Problem(model, "is a .gguf file", "give the folder of a checkpoint"))
    problems += destination_problems(str(store))
    if output is not None:
        problems += destination_problems(str(output))
    for check in (
        lambda: resolve_device(device),
        lambda: choose_engine(section.engine, gpus=gpus),
    ):
        try:
            check()
        except InvalidInputError as error:
            problems += error.problems
    if problems:
        raise InvalidInputError(problems)


def _write(report: Report, output: Path) -> Path:
    """Writes the report and its page; returns where the page is."""
    from quantlib.report.html import render_html
    from quantlib.report.model import HTML_NAME, JSON_NAME

    output.mkdir(parents=True, exist_ok=True)
    (output / JSON_NAME).write_bytes(report.to_json())
    page = output / HTML_NAME
    page.write_text(render_html(report), encoding="utf-8")
    return page


def _print(report: Report, page: Path | None) -> None:
    from quantlib.report.explain import remedies
    from quantlib.report.text import evaluation_line

    assert report.evaluation is not None
    click.echo(f"{report.verdict.outcome}: {report.verdict.reason}")
    click.echo(evaluation_line(report.evaluation))
    for remedy in remedies(report):
        click.echo(f"try: {remedy}")
    text = report.evaluation.text
    click.echo(
        f"judged by {report.evaluation.engine} {report.evaluation.engine_version} on "
        f"{report.evaluation.device}, on {text.tokens:,} tokens of {text.source}"
    )
    if page is not None:
        click.echo(f"report: {page}")
