"""What the steps that compute ask of a cluster: memory, CPUs and GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantlib.checks.model import quantized_sharding
from quantlib.checks.scheme import needs_calibration, needs_hidden_states
from quantlib.models import BaseModelAdapter
from quantlib.planning.hardware import Hardware
from quantlib.planning.memory import (
    Memory,
    calibrate_memory,
    measure_memory,
    quantize_memory,
    validate_memory,
)
from quantlib.planning.model import ModelSizes
from quantlib.recipe import Recipe

_CPUS = 4
"""One computes, or launches kernels; the others read ahead, hash and upload."""

_CPUS_OF_AN_IDLE_STEP = 1
_VLLM_CPUS = 2
"""vLLM's scheduler and the step itself; each GPU's process takes two more."""

NODE_GPUS = 8
"""GPUs of one node, where nothing else is known. Validation spreads no model over several nodes."""

VLLM_SHARE = 0.9
"""Of a GPU's memory that vLLM takes."""


@dataclass(frozen=True)
class StepNeeds:
    """What a step asks for.

    Attributes:
        memory: Peaks; that of the GPU is of each one.
        cpus: CPUs.
        gpus: GPUs.
        streams: Of validate: whether it reads the original block by block.
    """

    memory: Memory
    cpus: int
    gpus: int
    streams: bool = False


_IDLE = StepNeeds(Memory(1 << 30), _CPUS_OF_AN_IDLE_STEP, 0)
"""Of a step that is asked for nothing and ends at once."""


def calibration_tokens(recipe: Recipe) -> int:
    """Tokens that the calibrate step runs the model over; 0 for a method that needs none."""
    calibration = recipe.calibration
    tokens = calibration.num_samples * calibration.sequence_length
    return tokens if needs_calibration(recipe) else 0


def quantization_tokens(recipe: Recipe) -> int:
    """Tokens that a quantize worker runs its blocks over; 0 for a method that needs none."""
    return calibration_tokens(recipe) if needs_hidden_states(recipe.quantization) else 0


def step_needs(
    recipe: Recipe,
    sizes: ModelSizes,
    adapter: BaseModelAdapter,
    hardware: Hardware,
    product_bytes: int,
    node_gpus: int = NODE_GPUS,
) -> Mapping[str, StepNeeds]:
    """What calibrate, a quantize worker, validate and tasks ask for, by the step's name.

    With a budget a quantize worker's needs are those of one that measures as well.

    Args:
        recipe: What to do.
        sizes: Of the model.
        adapter: Of the model.
        hardware: What it is computed on.
        product_bytes: Bytes of a number in matrix products.
        node_gpus: GPUs of one node.
    """
    suppression = recipe.outlier_suppression
    trials = suppression is not None and suppression.options.get("alpha") == "auto"
    tokens = calibration_tokens(recipe)
    one = int(hardware.is_gpu)
    calibrate = calibrate_memory(sizes, tokens, hardware, product_bytes, trials=trials)
    quantize = quantize_memory(sizes, quantization_tokens(recipe), hardware, product_bytes)
    if recipe.quantization.budget is not None:
        # The same pods measure, before schemes are chosen.
        measure = measure_memory(sizes, hardware, product_bytes)
        quantize = Memory(max(quantize.host, measure.host), max(quantize.device, measure.device))
    judged = _validate_needs(recipe, sizes, adapter, hardware, product_bytes, node_gpus)
    tasks = _IDLE
    if recipe.tasks.run:
        # Both models are served, the original too where validate reads it block by block.
        validation = recipe.validation.model_copy(update={"reference": "engine"})
        served = recipe.model_copy(update={"validation": validation})
        tasks = _validate_needs(served, sizes, adapter, hardware, product_bytes, node_gpus)
    return {
        "calibrate": StepNeeds(calibrate, _CPUS, one)
        if tokens
        else StepNeeds(calibrate, _CPUS_OF_AN_IDLE_STEP, 0),
        "quantize": StepNeeds(quantize, _CPUS, one),
        "validate": judged,
        "tasks": tasks,
    }


def _validate_needs(
    recipe: Recipe,
    sizes: ModelSizes,
    adapter: BaseModelAdapter,
    hardware: Hardware,
    product_bytes: int,
    node_gpus: int,
) -> StepNeeds:
    window = recipe.validation.sequence_length
    reference = recipe.validation.reference
    if not hardware.is_gpu:
        streams = reference == "streamed"
        memory = validate_memory(sizes, window, hardware, product_bytes, streamed=streams)
        return StepNeeds(memory, _CPUS, 0, streams)
    # At least as many as will serve it: a checkpoint that cannot be cut so is to fail here. And
    # transformers judges on one.
    sizes_that_serve = [
        size
        for size in quantized_sharding(recipe.quantization, adapter).sizes()
        if recipe.serving.tensor_parallel_size <= size <= node_gpus
    ]
    if not sizes_that_serve or recipe.validation.engine == "transformers":
        sizes_that_serve = [1]
    ways = {"auto": (False, True), "engine": (False,), "streamed": (True,)}[reference]
    if reference == "auto" and adapter.layout.obstacles:
        ways = (False,)
    refused = []
    for streams in ways:
        for gpus in sizes_that_serve:
            memory = validate_memory(sizes, window, hardware, product_bytes, gpus, streamed=streams)
            needs = StepNeeds(memory, _VLLM_CPUS + 2 * gpus, gpus, streams)
            if vllm_fits(memory, hardware):
                return needs
        refused.append(needs)
    return refused[-1]


def vllm_fits(memory: Memory, hardware: Hardware) -> bool:
    """Whether what vLLM holds on a GPU fits what it takes of one."""
    return memory.device <= VLLM_SHARE * hardware.memory
