"""The component of the publish step."""

from kfp import dsl

from components._container import step_container


@dsl.container_component
def publish(
    recipe: str,
    destination: str,
    job: str,
    store: str,
    checkpoint: dsl.Input[dsl.Artifact],
    validation: dsl.Input[dsl.Artifact],
    tasks: dsl.Input[dsl.Artifact],
    published: dsl.Output[dsl.Model],
    publish_summary: dsl.Output[dsl.Markdown],
    address: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
) -> dsl.ContainerSpec:
    """Publishes a checkpoint that passed, under its digest and with the manifest last.

    Adds the model card with what was measured, and the provenance.

    Args:
        recipe: The checked recipe, as text.
        destination: Folder, s3://bucket/prefix, oci://registry/repository[:tag] or hf://org/name
            to publish to. Empty: the recipe's.
        job: Digest of the watcher's job that asked for it. Empty: none did.
        store: Address of the store that holds the bulk of every step: a folder or s3://bucket/prefix.
        checkpoint: Receipt of the checkpoint.
        validation: Receipt of the measurements; any verdict but passed is refused.
        tasks: Receipt of what came of the tasks; without a passed verdict it is refused.
        published: Receipt of what was published.
        publish_summary: What the step did, for the run's page.
        address: Where the checkpoint was published.
    """
    return step_container("publish")
