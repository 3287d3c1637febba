"""Options that several commands take, and what they mean to a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipelines.compiling import Compilation, CompileOptions
from pipelines.graph import GRAPHS, QUANTIZE
from pipelines.kubeflow.client import HOST_VARIABLE, UI_HOST_VARIABLE, Server
from quantlib.checks.recipe import load_recipe
from quantlib.checks.recipe_choice import AS_IN_RECIPE
from quantlib.errors import InvalidInputError, Problem
from quantlib.planning import HARDWARE
from quantlib.recipe import AskedRecipe
from quantlib.steps.plan import AUTO
from quantlib.text.addresses import LocalText, Text, parse_text
from quantlib.text.wanted import wanted_texts

LOCAL_STORE = ".quantlib/store"
"""Where steps keep their work on this machine, where nothing says so."""


@dataclass(frozen=True)
class Job:
    """What is to be done to which model, and where it goes.

    Attributes:
        recipe: A file, or the name of a recipe that ships.
        group_size: In the place of the recipe's.
        num_ranges: 0 for the recipe's, -1 for as many as end soonest.
        store: None for that of the cluster's profile, or of this machine.
        gpu: What the plan reckons with; None for the cluster's.
    """

    model: str
    recipe: str
    group_size: str | None
    store: str | None
    num_ranges: int
    publish_to: str
    device: str
    gpu: str | None

    def checked_recipe(self) -> AskedRecipe:
        """The recipe, with a model named in it or beside it.

        Raises:
            InvalidInputError: It is none, or there is no model.
        """
        recipe = load_recipe(self.recipe, self.group_size)
        if not (self.model or recipe.model):
            raise InvalidInputError.one(self.recipe, "names no model", "give one with --model")
        return recipe

    @property
    def name(self) -> str:
        """What runs of the recipe are called."""
        return Path(self.recipe).stem

    def settings(self) -> dict[str, Any]:
        """The settings of the workflow, but those that are left to the cluster's profile."""
        settings = {
            "model": self.model,
            "recipe": self.name,
            "scheme": AS_IN_RECIPE,
            "recipe_changes": {},
            "num_ranges": self.num_ranges,
            "device": self.device,
        }
        places = {
            "store": absolute(self.store or ""),
            "publish_to": absolute(self.publish_to),
            "gpu": self.gpu,
        }
        return settings | {name: value for name, value in places.items() if value}


def _options(
    name: str, kind: Callable[..., Any], *options: Callable[[Any], Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """One decorator for several options, which a command gets as one value.

    Args:
        name: Of the command's argument.
        kind: Makes it of the options.
        options: The first one is the first in the help.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def collecting(**values: Any) -> None:
            value = kind(**{option: values.pop(option) for option in names})
            command(**values, **{name: value})

        before = len(getattr(collecting, "__click_params__", ()))
        for option in reversed(options):
            option(collecting)
        parameters: list[click.Parameter] = vars(collecting)["__click_params__"]
        names = [str(each.name) for each in parameters[before:] if each.expose_value]
        return collecting

    return decorate


def _keep(context: click.Context, _: click.Parameter, value: str | None) -> None:
    context.meta[_POSITIONAL] = value


def _chosen_recipe(context: click.Context, _: click.Parameter, value: str | None) -> str:
    positional = context.meta[_POSITIONAL]
    if value and positional:
        raise click.BadParameter(f"is given twice: {value} and {positional}")
    return value or positional or "gptq"


_POSITIONAL = f"{__name__}.recipe"
_BEFORE_THE_OPTION: dict[str, Any] = {"callback": _keep, "is_eager": True, "expose_value": False}
pipeline_option = click.option(
    "--pipeline",
    "graph",
    type=click.Choice(list(GRAPHS)),
    default=QUANTIZE.name,
    show_default=True,
    callback=lambda _context, _option, value: GRAPHS[value],
    help="What to compile: the quantization, or one look for a new release, with it in it.",
)
own_recipes_option = click.option(
    "--recipe",
    "recipes",
    multiple=True,
    help="A recipe of your own that the form of a run offers too; several with several options.",
)
compile_options = _options(
    "options",
    CompileOptions,
    click.option(
        "--cluster",
        default="gpu",
        show_default=True,
        help="Profile of the cluster: gpu, local, or a file.",
    ),
    click.option(
        "--images-lock",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Take the images from this file, which `make push-images` writes.",
    ),
    click.option("--allow-floating", is_flag=True, help="Take images by tags that can move."),
)
server_options = _options(
    "server",
    Server,
    click.option("--host", default="", envvar=HOST_VARIABLE, help="Address of Kubeflow Pipelines."),
    click.option("--namespace", default="", help="The profile's namespace."),
    click.option(
        "--experiment", default="quantize", show_default=True, help="What groups the runs."
    ),
    click.option(
        "--service-account",
        default="",
        help="What the pods of a run are.  [default: quantlib-runner with --namespace, else the "
        "server's]",
    ),
    click.option(
        "--ui-host",
        default="",
        envvar=UI_HOST_VARIABLE,
        help="Address of Kubeflow's user interface, for links.  [default: --host]",
    ),
)
job_options = _options(
    "job",
    Job,
    click.option(
        "--model",
        default="",
        help="A folder, a .gguf file, hf://org/name@revision, or s3://bucket/prefix.  "
        "[default: the recipe's]",
    ),
    # As --recipe, for what was written before that was the word for it.
    click.argument("positional", metavar="[RECIPE]", required=False, **_BEFORE_THE_OPTION),
    click.option(
        "--recipe",
        callback=_chosen_recipe,
        show_default="gptq",
        help="A file, or the name of a recipe that ships.",
    ),
    click.option("--group-size", help="A number or auto, in the place of the recipe's."),
    click.option(
        "--store",
        help="Where the steps keep their work: a folder, or s3://bucket/prefix.  "
        f"[default: {LOCAL_STORE}, in Kubeflow the profile's]",
    ),
    click.option(
        "--num-ranges",
        callback=lambda _context, _option, value: _range_count(value),
        help="Ranges of blocks that are quantized in parallel; auto: as many as end soonest.  "
        "[default: the recipe's]",
    ),
    click.option("--publish-to", default="", help="Where to publish.  [default: the recipe's]"),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="What the steps compute on.",
    ),
    click.option(
        "--gpu",
        type=click.Choice(list(HARDWARE)),
        help="What the plan reckons with.  [default: the cluster's; cpu on this machine]",
    ),
)


def _range_count(text: str | None) -> int:
    if text is None:
        return 0
    if text == "auto":
        return AUTO
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise click.BadParameter(f"{text!r} is neither auto nor a number from 1 to 64")
    return int(text)


def own_recipes(names: Sequence[str]) -> dict[str, AskedRecipe]:
    """Recipes by the names that the form of a run offers them by.

    Raises:
        InvalidInputError: One is none, or two have one name.
    """
    recipes: dict[str, AskedRecipe] = {}
    problems: list[Problem] = []
    for name in names:
        try:
            recipe = load_recipe(name)
        except InvalidInputError as error:
            problems += error.problems
            continue
        if Path(name).stem in recipes:
            problems.append(Problem(f"--recipe {name}", "is called as another one is", "rename it"))
        recipes[Path(name).stem] = recipe
    if problems:
        raise InvalidInputError(problems)
    return recipes


def cluster_settings(job: Job, recipe: AskedRecipe, compilation: Compilation) -> dict[str, Any]:
    """The settings of a run in a cluster, which can reach all that they name.

    Raises:
        InvalidInputError: Something is on this machine, or nothing says where the store is.
    """
    settings = {setting.name: setting.default for setting in compilation.settings} | job.settings()
    if not settings["store"]:
        raise InvalidInputError.one("--store", "is missing", "give it, or set it in the profile")
    require_reachable(recipe, settings["model"], settings["store"], settings["publish_to"])
    return settings


def require_reachable(recipe: AskedRecipe, model: str, store: str, publish_to: str) -> None:
    """Checks that a run elsewhere does not need files or folders of this machine.

    Raises:
        InvalidInputError: It does.
    """
    addresses = {
        "--model": model or recipe.model or "",
        "--store": store,
        "--publish-to": publish_to or recipe.publish.destination or "",
    }
    problems = [
        Problem(f"{option} {address}", "is a folder of this machine", "give s3://bucket/prefix")
        for option, address in addresses.items()
        if address and ("://" not in address or address.startswith("file://"))
    ]
    for purpose, section in wanted_texts(recipe).items():
        text = Text.of(section)
        if isinstance(parse_text(text), LocalText):
            part = "validation" if purpose == "evaluation" else purpose
            problems.append(
                Problem(
                    f"{part}.dataset {text.dataset}",
                    "is on this machine",
                    "put it in object storage and give s3://bucket/prefix, or name it "
                    "hf://datasets/org/name@revision/path",
                )
            )
    if problems:
        raise InvalidInputError(problems)


def absolute(address: str) -> str:
    """A local folder as an absolute path; any other address as it is."""
    return address if not address or "://" in address else str(Path(address).absolute())
