"""How long a run will take, and into how many ranges it is best cut."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checks.scheme import needs_hidden_states
from quantlib.models import BaseModelAdapter
from quantlib.planning.hardware import Hardware, cpu_has_bf16
from quantlib.planning.memory import experts_at_once
from quantlib.planning.model import ModelSizes, model_sizes
from quantlib.planning.needs import (
    NODE_GPUS,
    StepNeeds,
    calibration_tokens,
    quantization_tokens,
    step_needs,
)
from quantlib.planning.tasks import tasks_seconds
from quantlib.recipe import Recipe

MOST_RANGES = 64
_STORE_BYTES_PER_SECOND = 500e6
"""One worker's traffic with the store, disks included."""

_POD_SECONDS = {True: 60.0, False: 2.0}
"""From a step's turn to its first line of work, on GPU nodes and on one machine."""

_VLLM_START_SECONDS = {True: 120.0, False: 15.0}
_GOOD_ENOUGH = 1.05
"""Fewer ranges are better, if they end about as soon: a range starts from unquantized inputs."""

_SEARCH_PASSES = 26 * 8
"""Times that the search for scales goes over a weight in float32."""


@dataclass(frozen=True)
class RangeEstimate:
    """A run with so many ranges.

    Attributes:
        ranges: How many.
        makespan: Seconds from start to end.
        device_seconds: Seconds that devices are held, all together.
        steps: Seconds of each step; of quantize, those of the longest range.
    """

    ranges: int
    makespan: float
    device_seconds: float
    steps: Mapping[str, float]


@dataclass(frozen=True)
class RunEstimate:
    """What a run will need.

    Attributes:
        hardware: What it runs on.
        parallel: Ranges that are quantized at the same time.
        tokens: Of the calibration text.
        needs: Of calibrate, of a quantize worker, of validate and of tasks, by the step's name.
        scratch_bytes: Largest local disk that a step takes.
        store_bytes: What the run adds to the store, the model itself included.
        options: One for each number of ranges.
        chosen: What was asked for, or the fewest ranges that end about as soon as any.
        images: Whether rows with images are calibrated on.
    """

    hardware: Hardware
    parallel: int
    tokens: int
    needs: Mapping[str, StepNeeds]
    scratch_bytes: int
    store_bytes: int
    options: tuple[RangeEstimate, ...]
    chosen: RangeEstimate
    images: bool = False


def estimate_run(
    recipe: Recipe,
    checkpoint: Checkpoint,
    adapter: BaseModelAdapter,
    hardware: Hardware,
    parallel: int,
    product_bytes: int | None = None,
    ranges: int | None = None,
    node_gpus: int = NODE_GPUS,
    *,
    images: bool = False,
) -> RunEstimate:
    """What quantizing a model will need, by its headers alone.

    Args:
        recipe: What to do.
        checkpoint: The model.
        adapter: The model's family.
        hardware: What it is computed on.
        parallel: Ranges that are quantized at the same time.
        product_bytes: Bytes of a number in matrix products; by default 2 on a GPU and on a CPU like
            this machine's if it multiplies bfloat16, else 4.
        ranges: How many are asked for; a model has at most one for each block to quantize. None to
            choose.
        node_gpus: GPUs of one node.
        images: Whether rows with images are calibrated on.
    """
    sizes = model_sizes(recipe, checkpoint, adapter, images=images)
    if product_bytes is None:
        product_bytes = 2 if hardware.is_gpu or cpu_has_bf16() else 4
    needs = step_needs(recipe, sizes, adapter, hardware, product_bytes, node_gpus)
    calibrated, quantized_on = calibration_tokens(recipe), quantization_tokens(recipe)
    most = min(MOST_RANGES, max(1, sizes.quantized_blocks))
    options = tuple(
        _estimate(recipe, sizes, hardware, parallel, count, needs) for count in range(1, most + 1)
    )
    if ranges is None:
        best = min(option.makespan for option in options)
        chosen = next(option for option in options if option.makespan <= _GOOD_ENOUGH * best)
    else:
        chosen = options[min(ranges, most) - 1]
    boundary = quantized_on * sizes.hidden_size * sizes.stored_bytes
    # Range files, the checkpoint and what is published share their bytes.
    store = sizes.total_bytes + chosen.ranges * boundary + sizes.quantized_bytes
    return RunEstimate(
        hardware=hardware,
        parallel=parallel,
        tokens=calibrated,
        needs=needs,
        # validate has both models on its disk, or streams the original from the store.
        scratch_bytes=sizes.quantized_bytes
        + (0 if needs["validate"].streams else sizes.total_bytes),
        store_bytes=store,
        options=options,
        chosen=chosen,
        images=images,
    )


def _estimate(
    recipe: Recipe,
    sizes: ModelSizes,
    hardware: Hardware,
    parallel: int,
    ranges: int,
    needs: Mapping[str, StepNeeds],
) -> RangeEstimate:
    calibrated, quantized_on = calibration_tokens(recipe), quantization_tokens(recipe)
    pod, vllm = _POD_SECONDS[hardware.is_gpu], _VLLM_START_SECONDS[hardware.is_gpu]
    blocks = math.ceil(sizes.quantized_blocks / ranges)
    # Calibration ends where the last range begins, except for the statistics of a suppressor, and
    # for what attention keeps.
    whole_model = recipe.outlier_suppression is not None or recipe.quantization.cache is not None
    share = 1.0 if whole_model else (ranges - 1) / ranges
    forward = 2 * sizes.block_elements / hardware.products
    boundary = sizes.hidden_size * sizes.stored_bytes
    per_block = _block_seconds(recipe, sizes, hardware, quantized_on)
    validation = recipe.validation
    judged = validation.num_samples * validation.sequence_length
    whole = sizes.total_bytes / _STORE_BYTES_PER_SECOND
    smaller = sizes.quantized_bytes / _STORE_BYTES_PER_SECOND
    steps = {
        "fetch": 2 * whole,
        "plan": 5.0,
        "calibrate": calibrated * (forward + ranges * boundary / _STORE_BYTES_PER_SECOND) * share
        + share * whole,
        "smooth": 2.0 if recipe.outlier_suppression else 0.0,
        "quantize": blocks * per_block
        + blocks / sizes.blocks * whole
        + quantized_on * boundary / _STORE_BYTES_PER_SECOND,
        "merge": 5.0,
        "validate": 2 * vllm + whole + smaller + 2 * 3 * judged * forward,
        "tasks": tasks_seconds(recipe.tasks, sizes, hardware, vllm, needs["tasks"].gpus),
        "publish": 5.0,
    }
    waves = math.ceil(ranges / parallel)
    makespan = sum(steps.values()) - steps["quantize"] + (len(steps) - 1) * pod
    # These two run side by side.
    makespan -= min(steps["validate"], steps["tasks"]) + pod
    makespan += waves * (steps["quantize"] + pod)
    asked = ("tasks", int(bool(recipe.tasks.run)))
    held = sum(
        max(needs[step].gpus, not hardware.is_gpu) * count * (steps[step] + pod)
        for step, count in (("calibrate", 1), ("quantize", ranges), ("validate", 1), asked)
    )
    return RangeEstimate(ranges, makespan, held, steps)


def _block_seconds(recipe: Recipe, sizes: ModelSizes, hardware: Hardware, tokens: int) -> float:
    """Quantizing the largest block."""
    seconds = 2 * sizes.largest_block_elements * tokens / hardware.products
    search = _SEARCH_PASSES if needs_hidden_states(recipe.quantization) else 8
    seconds += search * 4 * sizes.largest_block_elements / hardware.bandwidth
    if not tokens:
        return seconds
    most = experts_at_once(sizes, hardware)
    for group in sizes.groups:
        columns = group.columns
        column_seconds = hardware.column_seconds / group.together(most)
        # The upper triangle of the Hessian; a factorization and an inversion; the rounding.
        seconds += columns**2 * tokens / hardware.hessians
        seconds += columns**3 / hardware.hessians
        seconds += sum(
            2 * rows * columns**2 / hardware.hessians + columns * column_seconds
            for rows in group.rows
        )
    return seconds
