"""The component of the fetch step."""

from kfp import dsl

from components._container import step_container


@dsl.container_component
def fetch(
    recipe: str,
    source: str,
    store: str,
    model: dsl.Output[dsl.Artifact],
    texts: dsl.Output[dsl.Artifact],
    summary: dsl.Output[dsl.Markdown],
) -> dsl.ContainerSpec:
    """Fetches a model into the store as safetensors, and the texts of the recipe.

    The texts come first, so that one that is not there is refused before the model is fetched. The
    source is resolved to a commit or a content digest, a GGUF file is dequantized, and only
    weights, tokenizer and config files are taken. This is the only step that reads from the hub.

    Args:
        recipe: Recipe, as YAML or JSON text.
        source: A folder, a .gguf file, hf://org/name@revision, or s3://bucket/prefix. Empty: the
            recipe's model.
        store: Address of the store that holds the bulk of every step: a folder or s3://bucket/prefix.
        model: Receipt of the model in the store.
        texts: Receipt of the calibration and evaluation texts in the store.
        summary: What the step did, for the run's page.
    """
    return step_container("fetch")
