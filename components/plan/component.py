"""The component of the plan step."""

from kfp import dsl

from components._container import step_container
from components._images import VALIDATE_IMAGE


@dsl.container_component
def plan(
    recipe: str,
    num_ranges: int,
    gpu: str,
    parallel: int,
    node_gpus: int,
    scratch: str,
    searches: str,
    store: str,
    model: dsl.Input[dsl.Artifact],
    texts: dsl.Input[dsl.Artifact],
    plan: dsl.Output[dsl.Artifact],
    plan_summary: dsl.Output[dsl.Markdown],
    settled_recipe: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
    ranges: dsl.OutputPath(list[str]),  # type: ignore[valid-type]  # kfp's notation
    calibrate_memory: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
    calibrate_cpus: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
    calibrate_gpus: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
    quantize_memory: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
    quantize_cpus: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
    quantize_gpus: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
    validate_memory: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
    validate_cpus: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
    validate_gpus: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
    tasks_memory: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
    tasks_cpus: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
    tasks_gpus: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
) -> dsl.ContainerSpec:
    """Divides the model's blocks into ranges that are quantized in parallel.

    Checks the recipe against the model, turns the texts into windows of tokens, and balances the
    ranges by their number of parameters. What cannot fit a GPU's memory, a node's GPUs or a step's
    disk ends here, and so does what vLLM would not load.

    Args:
        recipe: The checked recipe, as text.
        num_ranges: Number of ranges. 0: the recipe's. -1: as many as end soonest.
        gpu: What the ranges are computed on, as `quantlib plan --gpu` knows it; cpu for none.
        parallel: How many ranges are quantized at the same time.
        node_gpus: GPUs of one node, over which validate can spread a model.
        scratch: Local disk of a step, such as 400Gi. Empty: not limited.
        searches: yes where steps follow that search schemes for a recipe's budget; else no.
        store: Address of the store that holds the bulk of every step: a folder or s3://bucket/prefix.
        model: Receipt of the model.
        texts: Receipt of the texts.
        plan: Receipt of the plan.
        plan_summary: What the run is expected to take, as a table.
        settled_recipe: The recipe as all later steps take it, with the group size as a number.
        ranges: The ranges, each as first block and end, such as "0:10".
        calibrate_memory: Memory that the calibrate step needs, such as 12Gi.
        calibrate_cpus: CPUs that it needs, such as 4.
        calibrate_gpus: GPUs that it needs; 0 for none.
        quantize_memory: Memory that a quantize step needs.
        quantize_cpus: CPUs that it needs.
        quantize_gpus: GPUs that it needs.
        validate_memory: Memory that the validate step needs.
        validate_cpus: CPUs that it needs.
        validate_gpus: GPUs that it needs, which share the model.
        tasks_memory: Memory that the tasks step needs.
        tasks_cpus: CPUs that it needs.
        tasks_gpus: GPUs that it needs, which share the model; 0 where no tasks are asked for.
    """
    return step_container("plan", VALIDATE_IMAGE)
