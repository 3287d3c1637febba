"""The component of the choose step."""

from kfp import dsl

from components._container import step_container


@dsl.container_component
def choose(
    recipe: str,
    store: str,
    model: dsl.Input[dsl.Artifact],
    measured: dsl.Input[list[dsl.Artifact]],
    chosen: dsl.Output[dsl.Artifact],
    choose_summary: dsl.Output[dsl.Markdown],
    searched_recipe: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
) -> dsl.ContainerSpec:
    """Chooses the scheme of every part of the model for the recipe's budget.

    The choice that costs least is found exactly, by an integer program over what all ranges
    measured.

    Args:
        recipe: The checked recipe, as text, with a budget.
        store: Address of the store that holds the bulk of every step: a folder or s3://bucket/prefix.
        model: Receipt of the model.
        measured: Receipts of what the ranges measured.
        chosen: Receipt of what was chosen, and of the best choices for other budgets.
        choose_summary: What the step did, for the run's page.
        searched_recipe: The recipe with what was chosen as rules in the place of the budget.
    """
    return step_container("choose")
