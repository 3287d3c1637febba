"""The component of the plan step."""

from kfp import dsl

from components._container import step_container


@dsl.container_component
def plan(
    recipe: str,
    num_ranges: int,
    store: str,
    model: dsl.Input[dsl.Artifact],
    plan: dsl.Output[dsl.Artifact],
    ranges: dsl.OutputPath(list[str]),  # type: ignore[valid-type]  # kfp's notation
) -> dsl.ContainerSpec:
    """Divides the model's blocks into ranges that are quantized in parallel.

    Checks the recipe against the model, and balances the ranges by their number of parameters.

    Args:
        recipe: Recipe, as YAML or JSON text.
        num_ranges: Number of ranges. 0: the recipe's.
        store: Address of the store that holds the bulk of every step: a folder.
        model: Receipt of the model.
        plan: Receipt of the plan.
        ranges: The ranges, each as first block and end, such as "0:10".
    """
    return step_container("plan")
