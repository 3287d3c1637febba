"""The component of the fetch step."""

from kfp import dsl

from components._container import step_container


@dsl.container_component
def fetch(
    recipe: str,
    scheme: str,
    recipe_changes: dict,
    recipes: dict,
    source: str,
    store: str,
    model: dsl.Output[dsl.Artifact],
    texts: dsl.Output[dsl.Artifact],
    fetch_summary: dsl.Output[dsl.Markdown],
    checked_recipe: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
) -> dsl.ContainerSpec:
    """Fetches a model into the store as safetensors, and the texts of the recipe.

    The recipe is checked first, and then come the texts, so that one that is not there is refused
    before the model is fetched. The
    source is resolved to a commit or a content digest, a GGUF file is dequantized, and only
    weights, tokenizer and config files are taken. This is the only step that reads from the hub.

    Args:
        recipe: Name of a recipe, or one as YAML or JSON text.
        scheme: Bits of weights and activations, such as W4A16, in the place of the recipe's.
        recipe_changes: Fields of the recipe that take the place of its own.
        recipes: Recipes of a team's own, as text, by their names.
        source: A folder, a .gguf file, hf://org/name@revision, or s3://bucket/prefix. Empty: the
            recipe's model.
        store: Address of the store that holds the bulk of every step: a folder or s3://bucket/prefix.
        model: Receipt of the model in the store.
        texts: Receipt of the calibration and evaluation texts in the store.
        fetch_summary: What the step did, for the run's page.
        checked_recipe: The recipe with every default filled in.
    """
    return step_container("fetch")
