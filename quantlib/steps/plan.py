"""plan: checks that recipe and model go together, and cuts the model into ranges of blocks."""

from __future__ import annotations

import sys
from itertools import accumulate

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.index import same_bytes
from quantlib.checks.group_size import settle
from quantlib.checks.linears import linear_schemes, rounded_draft_names
from quantlib.checks.model import exact_in_words, model_problems, unsuited_in_words
from quantlib.checks.outer import calibrates_head, outer_schemes
from quantlib.checks.recipe import asked_from_text
from quantlib.errors import InvalidInputError, Problem, collected
from quantlib.evaluation.dry_load import dry_load
from quantlib.evaluation.judging import not_by_kernels
from quantlib.formats.gpus import cache_on_gpu, on_gpu
from quantlib.models import BaseModelAdapter
from quantlib.models.family import ModelFamily
from quantlib.planning import (
    Hardware,
    Limits,
    RunEstimate,
    estimate_run,
    find_hardware,
    fit_problems,
    parse_quantity,
    quantity,
)
from quantlib.planning.estimate import MOST_RANGES
from quantlib.planning.model import growth_line
from quantlib.planning.show import markdown
from quantlib.quantization import QuantizationSection
from quantlib.recipe import AskedRecipe, Recipe
from quantlib.report.text import plural
from quantlib.search.choosing import tried_recipe
from quantlib.steps.contract import StepCall
from quantlib.steps.layout import open_receipt
from quantlib.steps.outer import separate_outer
from quantlib.steps.resolved import resolved_quantization, resolved_suppression
from quantlib.steps.texts import asked_items, input_of, make_all_windows
from quantlib.steps.windows import with_images
from quantlib.store import LocalStore, Receipt, StepOutput, Store, commit_step
from quantlib.tasks.prepared import prepare

AUTO = -1
"""Stands for as many ranges as end soonest."""


def plan(
    store: Store,
    asked: AskedRecipe,
    model: Receipt,
    texts: Receipt,
    num_ranges: int,
    hardware: Hardware | None = None,
    parallel: int = 1,
    limits: Limits | None = None,
    *,
    validated: bool = True,
) -> Receipt:
    """Checks everything that can be checked before expensive work, and chooses the ranges.

    The texts are turned into windows of tokens here, for all steps that read them. Where vLLM is
    installed, it builds the quantized model with dummy weights.

    Args:
        store: Where the steps' files are.
        asked: What to do. Where it leaves the group size open, it is settled here.
        model: Receipt of the fetch step.
        texts: Receipt of the texts.
        num_ranges: Ranges wanted; 0 for as many as the recipe says, ``AUTO`` for as many as end
            soonest.
        hardware: What they are quantized on; needed for ``AUTO``.
        parallel: How many are quantized at the same time, for ``AUTO``.
        limits: What the hardware's nodes have; None to require nothing of them.
        validated: Whether the checkpoint will be compared with the original.

    Returns:
        A receipt whose fact ``ranges`` lists the ranges, ``"0:8"``, and which rests on the windows
        of the texts.

    Raises:
        InvalidInputError: Recipe, model and texts do not go together, or a step does not fit the
            hardware; all problems at once. Or vLLM refuses the model.
    """
    checkpoint, adapter = open_receipt(store, model)
    settled = settle(asked, adapter)
    recipe = settled.recipe
    windows, problems = make_all_windows(
        store, recipe, texts, checkpoint, adapter, validated=validated
    )
    if validated and recipe.tasks.run:
        with collected(problems):
            items = asked_items(store, recipe.tasks, texts)
            prepare(recipe.tasks, items, checkpoint.source)
    images = "calibration" in windows and with_images(windows["calibration"])
    tried, unsuited = tried_recipe(recipe, checkpoint, adapter)
    unsuited += model_problems(tried, checkpoint, adapter, validated=validated)
    if not unsuited:
        problems += head_problems(checkpoint, adapter)
        if limits is not None and hardware is not None:
            opened = (checkpoint, adapter)
            estimate = _estimated(tried, opened, hardware, parallel, limits, images=images)
            problems += fit_problems(tried, checkpoint, adapter, estimate, limits)
    if problems := unsuited + problems:
        raise InvalidInputError(problems)
    wanted = num_ranges or recipe.num_ranges
    if num_ranges == AUTO:
        assert hardware is not None
        wanted = estimate_run(
            recipe, checkpoint, adapter, hardware, parallel, images=images
        ).chosen.ranges

    remarks = [f"{settled.said}."] if settled.said else []
    remarks += [
        f"The blocks are those that names and shapes show: {obstacle.where}: {obstacle.what}."
        for obstacle in adapter.layout.obstacles
    ]
    if grows := growth_line(tried, checkpoint, adapter):
        remarks.append(f"{grows}.")
    for line in remarks:
        print(line, file=sys.stderr, flush=True)

    def work(output: StepOutput) -> None:
        ranges = plan_ranges(recipe, adapter, wanted)
        output.facts["ranges"] = [f"{start}:{stop}" for start, stop in ranges]
        output.facts["blocks"] = adapter.blocks
        output.remarks += remarks
        if exact := exact_in_words(adapter):
            output.remarks.append(f"{exact[0].upper()}{exact[1:]}.")
        if words := unsuited_in_words(tried.quantization, adapter):
            output.remarks.append(f"{words}.")
        if drafts := rounded_draft_names(recipe.quantization, adapter):
            output.remarks.append(
                f"{plural(len(drafts), 'linear')} of layers that draft tokens will be rounded "
                "without calibration; experts of such layers stay exact."
            )
        output.remarks.append(
            dry_load(store, tried.quantization, model, checkpoint, adapter, validated=validated)
        )
        if hardware is not None and (said := judging_line(tried, adapter, hardware)):
            output.remarks.append(f"{said}.")
        if hardware is not None:
            output.remarks += [f"{line}." for line in serving_lines(tried, adapter, hardware)]

    parameters = {
        "quantization": resolved_quantization(recipe.quantization),
        "serving": recipe.serving.model_dump(mode="json"),
        "outlier_suppression": resolved_suppression(recipe.outlier_suppression),
        "num_ranges": wanted,
    }
    return commit_step(store, "plan", parameters, {"model": model, **windows}, work)


def judging_line(recipe: Recipe, adapter: BaseModelAdapter, hardware: Hardware) -> str | None:
    """That validation will judge by no kernel of vLLM's, and why; None where it will."""
    section, engine = recipe.quantization, recipe.validation.engine
    if hardware.is_gpu:
        return None
    how = not_by_kernels(section, adapter, engine, "cpu")
    return None if how is None else f"The checkpoint will be {how}"


def serving_lines(recipe: Recipe, adapter: BaseModelAdapter, hardware: Hardware) -> list[str]:
    """What serving lacks on a GPU like the plan's, and what vLLM does instead, by scheme."""
    if not hardware.is_gpu:
        return []
    used = {
        scheme: None
        for schemes in linear_schemes(recipe.quantization, adapter)
        for scheme in schemes.values()
    } | dict.fromkeys(outer_schemes(recipe.quantization, adapter).values())
    found = [(scheme.words, on_gpu(scheme, hardware.capability)) for scheme in used]
    if (cache := recipe.quantization.cache) is not None:
        found.append((f"A KV cache in {cache.words}", cache_on_gpu(cache, hardware.capability)))
    return [f"{words}, served on {hardware.name}: {lack}" for words, lack in found if lack]


def head_problems(checkpoint: Checkpoint, adapter: BaseModelAdapter) -> list[Problem]:
    """That a head lies beside an embedding which the config makes the head; reads both."""
    head = checkpoint.tensors.get(f"{adapter.head}.weight")
    if not adapter.tied or head is None:
        return []
    embedding = f"{adapter.embedding}.weight"
    if same_bytes(checkpoint.source, checkpoint.info(embedding), head):
        return []
    return [
        Problem(
            f"{adapter.head}.weight",
            f"differs from {embedding}, but the config ties them, so that vLLM would not load it",
            "set tie_word_embeddings to false in config.json, or remove the tensor",
        )
    ]


def _estimated(
    recipe: Recipe,
    model: tuple[Checkpoint, BaseModelAdapter],
    hardware: Hardware,
    parallel: int,
    limits: Limits,
    ranges: int | None = None,
    *,
    images: bool = False,
) -> RunEstimate:
    # A cluster's CPUs may not multiply bfloat16, whatever this one does.
    product_bytes = 2 if hardware.is_gpu else 4
    gpus = limits.node_gpus
    return estimate_run(
        recipe, *model, hardware, parallel, product_bytes, ranges, gpus, images=images
    )


def plan_ranges(recipe: Recipe, adapter: BaseModelAdapter, wanted: int) -> list[tuple[int, int]]:
    """Consecutive ranges with about equally many parameters to quantize.

    The ranges reach from the first block that is quantized to :func:`last_block`. Blocks between
    them that stay exact belong to a range, for calibration passes through them.

    Args:
        recipe: Which blocks are quantized.
        adapter: The model's family.
        wanted: Number of ranges; fewer where there are fewer quantized blocks.

    Returns:
        ``(start, stop)`` of each range.
    """
    # Every block that keeps keys and values in FP8 gets scales from a worker.
    cached = recipe.quantization.cache is not None
    sizes = [int(cached and bool(adapter.layout.attention(at))) for at in range(adapter.blocks)]
    for block, schemes in enumerate(linear_schemes(recipe.quantization, adapter)):
        for linear in schemes:
            rows, columns = adapter.linear_shape(block, linear)
            sizes[block] += rows * columns
    quantized = [block for block, size in enumerate(sizes) if size]
    count = min(wanted, len(quantized))
    sums = list(accumulate(sizes[block] for block in quantized))
    cuts = [0]
    for number in range(1, count):
        target = sums[-1] * number / count
        nearest = min(range(len(sums)), key=lambda at: abs(sums[at] - target)) + 1
        # Every range keeps at least one quantized block.
        cuts.append(min(max(nearest, cuts[-1] + 1), len(quantized) - (count - number)))
    starts = [quantized[cut] for cut in cuts]
    end = last_block(recipe.quantization, adapter) + 1
    return list(zip(starts, [*starts[1:], end], strict=True))


def last_block(section: QuantizationSection, adapter: ModelFamily) -> int:
    """The block at which the ranges end.

    That is the last one that is quantized or keeps keys and values in FP8, or of the model, where
    tokens go on to the head.
    """
    if calibrates_head(section, adapter):
        return adapter.blocks - 1
    return max(
        block
        for block, schemes in enumerate(linear_schemes(section, adapter))
        if schemes or (section.cache is not None and adapter.layout.attention(block))
    )


def parse_range(text: str) -> tuple[int, int]:
    """``(start, stop)`` of a range written as ``"0:8"``.

    Raises:
        InvalidInputError: It is not written so.
    """
    start, colon, stop = text.partition(":")
    if not colon or not start.isdecimal() or not stop.isdecimal() or int(start) >= int(stop):
        raise InvalidInputError.one(f"range {text!r}", "is not written as start:stop", "as 0:8")
    return int(start), int(stop)


def _limits(call: StepCall, store: Store) -> Limits:
    """What the cluster's profile says of its nodes; a store in a folder needs no scratch disk."""
    scratch = call.text("scratch")
    try:
        given = parse_quantity(scratch) if scratch else None
    except (ValueError, KeyError):
        raise InvalidInputError.one("scratch", f"is no size: {scratch!r}", "as 400Gi") from None
    return Limits(call.integer("node_gpus"), None if isinstance(store, LocalStore) else given)


def _require_steps_of_search(asked: AskedRecipe, searches: bool) -> None:
    """Refuses a recipe that the workflow has not the steps for."""
    budget = asked.quantization.budget
    if budget is not None and not searches:
        raise InvalidInputError.one(
            "recipe: quantization.budget",
            "asks for a search, which this workflow has no steps for",
            "run search, or watch-search, in the place of quantize or watch",
        )
    if budget is None and searches:
        raise InvalidInputError.one(
            "recipe: quantization.budget",
            "is missing, and this workflow searches schemes for one",
            "give a budget, such as 4.5bits, or run quantize in the place of search",
        )


def _streaming(recipe: Recipe) -> Recipe:
    """A recipe by which the original is read block by block."""
    validation = recipe.validation.model_copy(update={"reference": "streamed"})
    return recipe.model_copy(update={"validation": validation})


def main(call: StepCall) -> None:
    store, asked = call.store(), asked_from_text(call.text("recipe"))
    model, num_ranges = call.receipt("model"), call.integer("num_ranges")
    hardware, parallel = find_hardware(call.text("gpu")), call.integer("parallel")
    if not AUTO <= num_ranges <= MOST_RANGES:
        raise InvalidInputError.one(
            "num_ranges", f"is {num_ranges}", f"give 1 to {MOST_RANGES}, 0 or {AUTO}"
        )
    limits = _limits(call, store)
    _require_steps_of_search(asked, call.text("searches") == "yes")
    texts = call.receipt("texts")
    receipt = plan(store, asked, model, texts, num_ranges, hardware, parallel, limits)
    ranges = receipt.facts["ranges"]
    opened = open_receipt(store, model)
    settled = settle(asked, opened[1])
    separate_outer(store, settled.recipe.quantization, model)
    images = "calibration" in receipt.inputs and with_images(
        input_of(store, receipt, "calibration")
    )
    estimate = _estimated(
        settled.recipe, opened, hardware, parallel, limits, len(ranges), images=images
    )
    call.write_receipt("plan", store, receipt)
    recipe = settled.recipe
    if estimate.needs["validate"].streams:
        recipe = _streaming(recipe)
    call.write_parameter("settled_recipe", recipe.canonical_json())
    said = f"\n- {settled.said}\n" if settled.said else ""
    call.write_summary(markdown(estimate) + said)
    call.write_parameter("ranges", ranges)
    for step, needs in estimate.needs.items():
        call.write_parameter(f"{step}_memory", quantity(needs.memory.host))
        call.write_parameter(f"{step}_cpus", str(needs.cpus))
        call.write_parameter(f"{step}_gpus", str(needs.gpus))
