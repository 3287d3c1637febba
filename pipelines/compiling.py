"""From the table of steps to the file that an engine takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from components._images import Images, is_floating, named_images, read_lock
from pipelines.graph import QUANTIZE, SEARCH, WATCH, WATCH_SEARCH, Constants, Graph, Setting
from pipelines.profiles import Profile, load_profile
from quantlib.checks.recipe_choice import shipped_recipes
from quantlib.errors import InvalidInputError, Problem
from quantlib.recipe import AskedRecipe


@dataclass(frozen=True)
class CompileOptions:
    """How a workflow is compiled.

    Attributes:
        cluster: A profile: a file, or the name of one that ships.
        images_lock: The lock file of the images; None for their names.
        allow_floating: Whether images may be named by a tag that can move.
        recipes: Recipes of one's own, by the names that runs choose them by; the first is chosen
            where none is.
        job: Digest of the watcher's job that asks.
    """

    cluster: str = "gpu"
    images_lock: Path | None = None
    allow_floating: bool = False
    recipes: Mapping[str, AskedRecipe] = field(default_factory=dict)
    job: str = ""


@dataclass(frozen=True)
class Compilation:
    """Everything that decides what is compiled, checked.

    Attributes:
        settings: Those of the graph, with the defaults and choices of this compilation.
        labels: Labels of the pods that tell runs apart.
    """

    graph: Graph
    settings: tuple[Setting, ...]
    constants: Constants
    profile: Profile
    images: Images
    labels: Mapping[str, str]


def graph_of(recipe: AskedRecipe, *, watched: bool = False) -> Graph:
    """The workflow that a recipe needs: with the steps of a search where it has a budget."""
    if recipe.quantization.budget is None:
        return WATCH if watched else QUANTIZE
    return WATCH_SEARCH if watched else SEARCH


def prepare(graph: Graph, options: CompileOptions) -> Compilation:
    """Checks options and fills in what follows from them.

    Raises:
        InvalidInputError: An image is named by a tag that can move, or the profile is wrong.
    """
    images, profile = _images(options), load_profile(options.cluster)
    constants = Constants(
        recipes={name: recipe.canonical_json() for name, recipe in options.recipes.items()},
        node_gpus=profile.node_gpus,
        parallel=profile.parallel,
        scratch=profile.scratch.size,
        searches="yes" if graph.searches else "no",
        images=images.of_quantization,
        job=options.job,
    )
    defaults = {"gpu": profile.gpu, "store": profile.store, "publish_to": profile.publish_to}
    names = (*options.recipes, *(name for name in shipped_recipes() if name not in options.recipes))

    def settle(setting: Setting) -> Setting:
        if setting.name == "recipe":
            return replace(setting, choices=names, default=next(iter(options.recipes), "gptq"))
        return replace(setting, default=defaults.get(setting.name) or setting.default)

    return Compilation(
        graph,
        tuple(map(settle, graph.settings)),
        constants,
        profile,
        images,
        _labels(options.recipes),
    )


def _images(options: CompileOptions) -> Images:
    images = read_lock(options.images_lock) if options.images_lock else named_images()
    floating = [image for image in dataclasses.astuple(images) if is_floating(image)]
    if floating and not options.allow_floating:
        raise InvalidInputError(
            Problem(
                f"image {image}",
                "has a tag that can move, so a run cannot be traced to what it ran",
                "name it by digest, version or revision (--images-lock), or give --allow-floating",
            )
            for image in floating
        )
    return images


def _labels(recipes: Mapping[str, AskedRecipe]) -> dict[str, str]:
    if len(recipes) != 1:
        return {}
    (recipe,) = recipes.values()  # a label's value has room for 63 characters
    return {"quantlib.io/recipe": recipe.digest().removeprefix("sha256:")[:12]}
