"""The container that every component runs."""

from kfp import dsl

from components._images import QUANTLIB_IMAGE


def step_container(step: str, image: str = QUANTLIB_IMAGE) -> dsl.ContainerSpec:
    """A container that runs one step.

    The executor input, which Kubeflow substitutes for ``{{$}}``, is the one form that carries a
    list of artifacts and the paths of all outputs.

    Args:
        step: Name of the step.
        image: Image to run it in.
    """
    return dsl.ContainerSpec(
        image=image,
        command=["python", "-m", "quantlib.steps", step],
        args=["--executor-input", "{{$}}"],
    )
