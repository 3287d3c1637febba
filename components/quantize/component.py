"""The component of the quantize step."""

from kfp import dsl

from components._container import step_container


@dsl.container_component
def quantize(
    recipe: str,
    block_range: str,
    store: str,
    device: str,
    memory: str,
    cpus: str,
    gpus: str,
    model: dsl.Input[dsl.Artifact],
    calibration: dsl.Input[dsl.Artifact],
    smoothing: dsl.Input[dsl.Artifact],
    quantized: dsl.Output[dsl.Artifact],
    quantize_summary: dsl.Output[dsl.Markdown],
) -> dsl.ContainerSpec:
    """Quantizes one range of blocks, reading the weights of these blocks only.

    Each block is calibrated on the output of the quantized block before it.

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
        smoothing: Receipt of the scales to fold in.
        quantized: Receipt of the range's tensors, in the checkpoint's final format.
        quantize_summary: What the step did, for the run's page.
    """
    return step_container("quantize")
