"""The component of the merge step."""

from kfp import dsl

from components._container import step_container


@dsl.container_component
def merge(
    recipe: str,
    store: str,
    model: dsl.Input[dsl.Artifact],
    quantized: dsl.Input[list[dsl.Artifact]],
    checkpoint: dsl.Output[dsl.Model],
    merge_summary: dsl.Output[dsl.Markdown],
) -> dsl.ContainerSpec:
    """Joins the ranges into one checkpoint that vLLM loads.

    The files of the ranges are taken as they are; the embedding and all else that is not quantized
    goes into one more file, beside index, config and tokenizer.

    Args:
        recipe: The checked recipe, as text.
        store: Address of the store that holds the bulk of every step: a folder or s3://bucket/prefix.
        model: Receipt of the model.
        quantized: Receipts of all ranges.
        checkpoint: Receipt of the checkpoint.
        merge_summary: What the step did, for the run's page.
    """
    return step_container("merge")
