"""The component of the validate step."""

from kfp import dsl

from components._container import step_container
from components._images import VALIDATE_IMAGE


@dsl.container_component
def validate(
    recipe: str,
    store: str,
    device: str,
    gpus: str,
    model: dsl.Input[dsl.Artifact],
    plan: dsl.Input[dsl.Artifact],
    checkpoint: dsl.Input[dsl.Artifact],
    validation: dsl.Output[dsl.Artifact],
    validate_summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    verdict: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
    reason: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
) -> dsl.ContainerSpec:
    """Judges the checkpoint against the original model on held-out text.

    Loads both, and the original rounded to nearest, and holds perplexity, KL divergence and
    agreement against limits for the scheme and the model's size, or those of the recipe. The step
    succeeds whatever the verdict is: a step that fails loses its outputs in Kubeflow.

    Args:
        recipe: The checked recipe, as text.
        store: Address of the store that holds the bulk of every step: a folder or s3://bucket/prefix.
        device: auto, cpu or cuda.
        gpus: GPUs that share the model, by the plan; 0 for none.
        model: Receipt of the original model.
        plan: Receipt of the plan, which names the windows of text.
        checkpoint: Receipt of the checkpoint.
        validation: Receipt of the measurements.
        validate_summary: What the step did, for the run's page.
        metrics: The measurements, for the run's metrics view.
        report: The report, as one self-contained page.
        verdict: passed, regression, inconclusive or broken.
        reason: Which limits were missed, and by how much; or what is broken.
    """
    return step_container("validate", VALIDATE_IMAGE)
