"""The component of the gate step."""

from kfp import dsl

from components._container import step_container


@dsl.container_component
def gate(
    reason: str,
) -> dsl.ContainerSpec:
    """Fails the run of a checkpoint that was refused.

    Runs only where the verdict is not passed, and always exits with code 3, so that the run fails
    visibly, with the reason, after the report was delivered.

    Args:
        reason: Why the checkpoint was refused.
    """
    return step_container("gate")
