"""The component of the smooth step."""

from kfp import dsl

from components._container import step_container


@dsl.container_component
def smooth(
    recipe: str,
    store: str,
    model: dsl.Input[dsl.Artifact],
    calibration: dsl.Input[dsl.Artifact],
    smoothing: dsl.Output[dsl.Artifact],
    smooth_summary: dsl.Output[dsl.Markdown],
) -> dsl.ContainerSpec:
    """Computes the scales that move outliers from activations into weights.

    No weight is rewritten: the scales are folded in wherever a block is loaded. Without outlier
    suppression in the recipe there are none.

    Args:
        recipe: The checked recipe, as text.
        store: Address of the store that holds the bulk of every step: a folder or s3://bucket/prefix.
        model: Receipt of the model.
        calibration: Receipt of the channel statistics.
        smoothing: Receipt of the scales.
        smooth_summary: What the step did, for the run's page.
    """
    return step_container("smooth")
