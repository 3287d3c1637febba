"""The component of the calibrate step."""

from kfp import dsl

from components._container import step_container


@dsl.container_component
def calibrate(
    recipe: str,
    store: str,
    device: str,
    model: dsl.Input[dsl.Artifact],
    plan: dsl.Input[dsl.Artifact],
    calibration: dsl.Output[dsl.Artifact],
    calibrate_summary: dsl.Output[dsl.Markdown],
) -> dsl.ContainerSpec:
    """Runs the calibration text through the model, one block in memory at a time.

    Keeps the hidden states at the first block of each range, and the channel statistics of every
    block.

    Args:
        recipe: The checked recipe, as text.
        store: Address of the store that holds the bulk of every step: a folder or s3://bucket/prefix.
        device: auto, cpu or cuda.
        model: Receipt of the model.
        plan: Receipt of the plan, which says where the ranges begin, and names the windows of text.
        calibration: Receipt of the hidden states and statistics.
        calibrate_summary: What the step did, for the run's page.
    """
    return step_container("calibrate")
