"""The component of the resolve step."""

from kfp import dsl

from components._container import step_container
from components._images import WATCH_IMAGE


@dsl.container_component
def resolve(
    recipe: str,
    scheme: str,
    recipe_changes: dict,
    recipes: dict,
    source: str,
    num_ranges: int,
    destination: str,
    images: list[str],
    resolve_summary: dsl.Output[dsl.Markdown],
    needed: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
    release: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
    job: dsl.OutputPath(str),  # type: ignore[valid-type]  # kfp's notation
) -> dsl.ContainerSpec:
    """Finds out which release a model's address means now, and whether it is quantized already.

    Pins a branch of the hub to its commit, and looks up in the destination whether this recipe was
    run on this release, by these images and this code. Its result is never taken from a cache.

    Args:
        recipe: Name of a recipe, or one as YAML or JSON text.
        scheme: Bits of weights and activations, such as W4A16, in the place of the recipe's.
        recipe_changes: Fields of the recipe that take the place of its own.
        recipes: Recipes of a team's own, as text, by their names.
        source: The model to watch, as a run takes it. Empty: the recipe's.
        num_ranges: Number of ranges, as a run takes it. 0: the recipe's.
        destination: Folder, s3://bucket/prefix, oci://registry/repository[:tag] or hf://org/name
            to publish to. Empty: the recipe's.
        images: The images that the steps of the run are in.
        resolve_summary: What the step found, for the run's page.
        needed: yes where a checkpoint is to be made, no where it is published.
        release: The source, pinned as far as it can be.
        job: Digest of recipe, release, texts, images and code, for the publish step to note.
    """
    return step_container("resolve", WATCH_IMAGE)
