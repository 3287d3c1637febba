"""The component of the tasks step."""

from kfp import dsl

from components._container import step_container
from components._images import TASKS_IMAGE


@dsl.container_component
def tasks(
    recipe: str,
    store: str,
    device: str,
    gpus: str,
    model: dsl.Input[dsl.Artifact],
    texts: dsl.Input[dsl.Artifact],
    checkpoint: dsl.Input[dsl.Artifact],
    tasks: dsl.Output[dsl.Artifact],
    tasks_summary: dsl.Output[dsl.Markdown],
    verdict: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
    reason: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
) -> dsl.ContainerSpec:
    """Judges the checkpoint by tasks that it and the original are given as they are served.

    Starts vLLM's server on both, has lm-eval ask them, and compares what is kept of the original's
    score with the recipe's limit. Without tasks in the recipe it ends at once. The step succeeds
    whatever the verdict is: a step that fails loses its outputs in Kubeflow.

    Args:
        recipe: The checked recipe, as text.
        store: Address of the store that holds the bulk of every step: a folder or s3://bucket/prefix.
        device: auto, cpu or cuda.
        gpus: GPUs that share the model, by the plan; 0 for none.
        model: Receipt of the original model.
        texts: Receipt of the texts, the tasks' items among them.
        checkpoint: Receipt of the checkpoint.
        tasks: Receipt of what came of the tasks.
        tasks_summary: What the step did, for the run's page.
        verdict: passed, regression, inconclusive or broken.
        reason: What is kept of the original's score, and what the limit is.
    """
    return step_container("tasks", TASKS_IMAGE)
