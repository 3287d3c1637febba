"""``quantlib plan``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from quantlib.cli.model_argument import model_argument
from quantlib.cli.range_count import range_count
from quantlib.cli.result_options import print_json, progress, result_options
from quantlib.cli.search_options import budget_option, candidates_option

_EXAMPLES = """\b
Examples:
  quantlib plan ./Llama-3.1-8B --gpu h100-80g
  quantlib plan ./Llama-3.1-8B --scheme NVFP4 --gpu h100-80g
  quantlib plan ./Llama-3.1-8B --recipe awq --gpu l4-24g --num-ranges auto --parallel 8
  quantlib plan hf://org/Llama@main --gpu a100-80g --num-ranges 16 --json
  quantlib plan ./Llama-3.1-8B --gpu l4-24g --budget 4.5bits
  quantlib plan ./Llama-3.1-405B --gpu h100-80g --node-gpus 8 --scratch 400Gi
"""


@click.command(epilog=_EXAMPLES)
@model_argument
@click.option("--recipe", "recipe_name", default="gptq", show_default=True, help="File or name.")
@click.option("--gpu", default="cpu", show_default=True, help="h100-80g, l4-24g, ...; cpu: none.")
@click.option(
    "--num-ranges",
    "--ranges",
    "ranges",
    default="auto",
    show_default=True,
    callback=lambda _context, _option, value: range_count(value),
    help="A number from 1 to 64, or auto.",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Ranges that are quantized at the same time.",
)
@click.option(
    "--node-gpus",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="GPUs of one node: validate spreads a model over these.",
)
@click.option("--scratch", help="Local disk of a step, as 400Gi.  [default: not looked at]")
@click.option("--group-size", help="A number or auto, in the place of the recipe's.")
@budget_option
@candidates_option
@click.option("--scheme", help="W4A16, NVFP4, ...: in the place of the recipe's.")
@result_options
def plan(
    model: str,
    recipe_name: str,
    gpu: str,
    ranges: int | None,
    parallel: int,
    node_gpus: int,
    scratch: str | None,
    group_size: str | None,
    budget: str | None,
    candidates: list[str] | None,
    scheme: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show what quantizing MODEL would need: memory, disk and time for 1 to 64 ranges.

    Only headers are read. The pipeline's plan step goes by the same numbers. Exits with 2 where
    something does not fit, and says what would.
    """
    from quantlib.checks.group_size import settle
    from quantlib.checks.model import exact_in_words
    from quantlib.checks.recipe import load_recipe
    from quantlib.checks.run import opened_problems
    from quantlib.checks.suppression import possible_suppression
    from quantlib.errors import InvalidInputError, Problem, collected
    from quantlib.models import open_model
    from quantlib.models.fusion import not_served
    from quantlib.planning import Limits, estimate_run, find_hardware, fit_problems, show
    from quantlib.planning.model import growth_line
    from quantlib.report.text import plural
    from quantlib.search.candidates import search_space
    from quantlib.search.choosing import space_line, tried_recipe
    from quantlib.sources.opening import open_source
    from quantlib.steps.plan import judging_line, serving_lines
    from quantlib.steps.texts import is_illustrated

    problems: list[Problem] = []
    with collected(problems):
        hardware = find_hardware(gpu)
    with collected(problems):
        asked = load_recipe(
            recipe_name, scheme, group_size=group_size, budget=budget, candidates=candidates
        )
    if problems:
        raise InvalidInputError(problems)
    with progress(quiet=quiet):
        source = open_source(model)
        checkpoint, adapter = open_model(source, folds=possible_suppression(asked) is not None)
        settled = settle(asked, adapter)
        recipe, searched = settled.recipe, None
        if problems := opened_problems(recipe, checkpoint, adapter):
            raise InvalidInputError(problems)
        if (asked_for := recipe.quantization.budget) is not None:
            searched = space_line(search_space(recipe, checkpoint, adapter), asked_for)
            recipe, _ = tried_recipe(recipe, checkpoint, adapter)
        estimate = estimate_run(
            recipe,
            checkpoint,
            adapter,
            hardware,
            parallel,
            ranges=ranges,
            node_gpus=node_gpus,
            images=is_illustrated(recipe),
        )
        grows = growth_line(recipe, checkpoint, adapter)
    chosen = estimate.chosen
    limits = Limits(node_gpus, _bytes(scratch))
    unfit = fit_problems(recipe, checkpoint, adapter, estimate, limits)
    if as_json:
        chosen_size = {"size": settled.size, "reason": settled.said or None}
        told = {"group_size": chosen_size, "problems": [str(problem) for problem in unfit]}
        print_json("plan", asdict(estimate) | told | {"search": searched, "growth": grows})
        if unfit:
            raise InvalidInputError(unfit)
        return
    console = Console(highlight=False)
    if ranges is None:
        why = "chosen: the fewest that end about as soon as any"
    elif ranges == chosen.ranges:
        why = "as asked"
    else:
        why = f"not {ranges}: one for each block to quantize is the most"
    console.print(
        f"{plural(chosen.ranges, 'range')} on {hardware.name} ({why}), {parallel} at a time"
    )
    if said := searched or settled.said:
        console.print(said)
    console.print()
    console.print(_table(show.NEEDS_HEADER, show.needs_rows(estimate)))
    console.print()
    console.print(_table(("step", "time (estimate)"), show.step_rows(chosen)))
    header = ("ranges", "calibrate", "longest range", "whole run", "device hours", "")
    console.print()
    console.print(_table(header, show.range_rows(estimate)))
    console.print()
    for line in show.closing_lines(estimate):
        console.print(line)
    if grows:
        console.print(grows)
    if exact := exact_in_words(adapter):
        console.print(exact)
    if judged := judging_line(recipe, adapter, hardware):
        console.print(judged)
    if unserved := not_served(adapter.layout.architecture):
        console.print(unserved)
    for line in serving_lines(recipe, adapter, hardware):
        console.print(line)
    if unfit:
        raise InvalidInputError(unfit)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(*header, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    return table


def _bytes(text: str | None) -> int | None:
    from quantlib.planning import parse_quantity

    if text is None:
        return None
    try:
        return parse_quantity(text)
    except (ValueError, KeyError):
        raise click.BadParameter(f"{text!r} is no size, as 400Gi is") from None
