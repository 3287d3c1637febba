"""``quantlib evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from quantlib.cli.result_options import (
    exit_where_refused,
    print_json,
    progress,
    result_of,
    result_options,
)
from quantlib.cli.side_by_side import print_comparison, write_comparison
from quantlib.errors import InvalidInputError, Problem

if TYPE_CHECKING:
    from quantlib.recipe import ValidationSection
    from quantlib.report.compare import Comparison
    from quantlib.report.model import Report

_EXAMPLES = """\b
Examples:
  quantlib evaluate ./Llama ./Llama-W4
  quantlib evaluate hf://meta/Llama@main hf://org/Llama-AWQ@main --output judged
  quantlib evaluate ./Llama ./Llama-W4 --baseline hf://org/Llama-AWQ@main --baseline ./Llama-W8
  quantlib evaluate --original ./Llama --model s3://models/llama/4f2a... --num-samples 40 --json
"""

_PAGE = "comparison.html"
"""The page of several checkpoints beside each other, in the folder of ``--output``."""


@click.command(epilog=_EXAMPLES)
@click.argument("words", nargs=-1, metavar="ORIGINAL CHECKPOINT")
@click.option("--model", metavar="CHECKPOINT", help="The same as CHECKPOINT.")
@click.option("--original", metavar="ORIGINAL", help="The same as ORIGINAL.")
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    help="Another checkpoint of ORIGINAL, to be judged on the same text and shown beside. May be "
    "given several times.",
)
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
    help="GPUs that each model is spread over.",
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
    help="Write the report of CHECKPOINT there, as quantization_report.json and .html, and with "
    "--baseline comparison.html.",
)
@result_options
def evaluate(
    words: tuple[str, ...],
    model: str | None,
    original: str | None,
    baselines: tuple[str, ...],
    recipe: str | None,
    device: str,
    gpus: int,
    store: Path,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Judge the quantized CHECKPOINT against its ORIGINAL on held-out text.

    ORIGINAL is a folder, a .gguf file, hf://org/name@rev or s3://bucket/prefix, and CHECKPOINT all
    of these but a .gguf file. It may be one that quantlib wrote or published, or anybody's in a
    format that is read: compressed-tensors, AWQ, GPTQ, FP8, MXFP4. It is judged as the validate
    step judges. Exits with 3 to 5 where the gate refuses CHECKPOINT, whatever it says of a
    --baseline.
    """
    from quantlib.manager import judge_checkpoints
    from quantlib.store import LocalStore

    original, checkpoint = _pair(words, original, model)
    checkpoints = (checkpoint, *baselines)
    section = _section(recipe, options)
    _require_possible(section, checkpoints, original, store, output, device, gpus)
    with progress(quiet=quiet):
        reports = judge_checkpoints(section, checkpoints, original, LocalStore(store), device, gpus)
    report, *others = reports
    page = None if output is None else _write(report, output)
    comparison = _compared(checkpoints, reports) if others else None
    beside = None
    if comparison is not None and output is not None:
        beside = output / _PAGE
        write_comparison(comparison, beside, f"--output {output}")
    if as_json:
        found = {**result_of(report), "report": page and str(page)}
        if comparison is not None:
            found["comparison"] = {**comparison.to_json(), "page": beside and str(beside)}
        print_json("evaluate", found)
    else:
        _print(report, page)
        if comparison is not None:
            print_comparison(comparison)
        if beside is not None:
            click.echo(f"page: {beside}")
    exit_where_refused(report)


def _pair(words: Sequence[str], original: str | None, model: str | None) -> tuple[str, str]:
    """The original and the checkpoint: words say, in this order, what options leave open."""
    named = {"ORIGINAL": original, "CHECKPOINT": model}
    left = list(words)
    for name, given in named.items():
        if given is None and left:
            named[name] = left.pop(0)
        elif not given:
            raise click.UsageError(f"Missing argument '{name}'.")
    if left:
        raise click.UsageError(
            f"{' '.join(left)}: ORIGINAL and CHECKPOINT are given already; give further "
            f"checkpoints by --baseline"
        )
    return str(named["ORIGINAL"]), str(named["CHECKPOINT"])


def _compared(checkpoints: Sequence[str], reports: Sequence[Report]) -> Comparison:
    from quantlib.report.compare import compare_runs
    from quantlib.report.run_reports import LETTERS, Run

    named = zip(LETTERS, checkpoints, reports, strict=False)
    return compare_runs(
        [Run(letter, PurePosixPath(name).name, report) for letter, name, report in named]
    )


def _section(recipe: str | None, options: dict[str, Any]) -> ValidationSection:
    """What to judge by: the recipe's section, with the options in it."""
    from quantlib.checks.recipe import load_recipe, parse_recipe

    section = load_recipe(recipe).validation.model_dump(mode="json") if recipe else {}
    section |= {name: value for name, value in options.items() if value is not None}
    return parse_recipe({"validation": section}, origin=recipe or "options").validation


def _require_possible(
    section: ValidationSection,
    checkpoints: Sequence[str],
    original: str,
    store: Path,
    output: Path | None,
    device: str,
    gpus: int,
) -> None:
    from quantlib.checks.machine import destination_problems
    from quantlib.evaluation.choose_engine import choose_engine
    from quantlib.report.run_reports import MOST_RUNS
    from quantlib.runtime.devices import resolve_device
    from quantlib.sources import GgufAddress, parse_address, source_problems

    problems = source_problems(original)
    for checkpoint in dict.fromkeys(checkpoints):
        if found := source_problems(checkpoint):
            problems += found
        elif isinstance(parse_address(checkpoint), GgufAddress):
            what = "is a .gguf file"
            problems.append(Problem(checkpoint, what, "give the folder of a checkpoint"))
    if len(checkpoints) > MOST_RUNS:
        what = f"{len(checkpoints) - 1} given"
        problems.append(Problem("--baseline", what, f"give {MOST_RUNS - 1} at most"))
    problems += destination_problems(str(store))
    if output is not None:
        problems += destination_problems(str(output))
    for check in (
        lambda: resolve_device(device, gpus),
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
