"""The component of the measure step."""

from kfp import dsl

from components._container import step_container


@dsl.container_component
def measure(
    recipe: str,
    block_range: str,
    store: str,
    device: str,
    memory: str,
    cpus: str,
    gpus: str,
    model: dsl.Input[dsl.Artifact],
    calibration: dsl.Input[dsl.Artifact],
    measured: dsl.Output[dsl.Artifact],
    measure_summary: dsl.Output[dsl.Markdown],
) -> dsl.ContainerSpec:
    """Measures what each scheme costs each part of one range of blocks.

    For a recipe with a budget. A part is what vLLM computes as one; it is rounded, and the block's
    output compared with what it was.

    Args:
        recipe: The checked recipe, as text.
        block_range: First block and end of the range, such as "8:16".
        store: Address of the store that holds the bulk of every step: a folder or s3://bucket/prefix.
        device: auto, cpu or cuda.
        memory: Memory of the container, by the plan. Kubernetes reads it; the step does not.
        cpus: The same of CPUs.
        gpus: The same of GPUs.
        model: Receipt of the model.
        calibration: Receipt of the hidden states that enter the range.
        measured: Receipt of the errors.
        measure_summary: What the step did, for the run's page.
    """
    return step_container("measure")
