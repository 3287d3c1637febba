"""The component of the gate step."""

from kfp import dsl

from components._container import step_container


@dsl.container_component
def gate(
    verdict: str,
    reason: str,
    tasks_verdict: str,
    tasks_reason: str,
    model: str,
) -> dsl.ContainerSpec:
    """Fails the run of a checkpoint that was refused, before anything is published.

    Unless the verdict is passed it exits with code 3 (regression), 4 (inconclusive) or 5 (broken),
    so that the run fails visibly, with the reason, after the report was delivered.

    Args:
        verdict: passed, regression, inconclusive or broken.
        reason: Why the checkpoint was refused.
        tasks_verdict: What the tasks step says: passed, regression, inconclusive or broken.
        tasks_reason: Why it says so.
        model: What was asked for, for whoever is told.
    """
    return step_container("gate")
