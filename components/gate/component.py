"""The component of the gate step."""

from kfp import dsl

from components._container import step_container


@dsl.container_component
def gate(
    verdict: str,
    reason: str,
    model: str,
) -> dsl.ContainerSpec:
    """Fails the run of a checkpoint that was refused, before anything is published.

    It exits with code 3 unless the verdict is passed, so that the run fails visibly, with the
    reason, after the report was delivered.

    Args:
        verdict: passed or failed.
        reason: Why the checkpoint was refused.
        model: What was asked for, for whoever is told.
    """
    return step_container("gate")
