"""Options that several commands take, and what they mean to a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipelines.compiling import Compilation, CompileOptions, prepare
from pipelines.graph import GRAPHS, QUANTIZE
from pipelines.kubeflow.client import HOST_VARIABLE, UI_HOST_VARIABLE, Kubeflow, Server
from pipelines.kubeflow.compiling import compiled
from quantlib.checks.recipe import load_recipe, recipe_problems
from quantlib.checks.recipe_choice import AS_IN_RECIPE
from quantlib.checks.remote import require_reachable
from quantlib.cli.range_count import range_count
from quantlib.cli.search_options import search_options
from quantlib.errors import InvalidInputError, Problem
from quantlib.planning import HARDWARE
from quantlib.recipe import AskedRecipe
from quantlib.steps.plan import AUTO

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
        budget: In the place of the recipe's.
        candidates: The same.
    """

    model: str
    recipe: str
    group_size: str | None
    store: str | None
    num_ranges: int
    publish_to: str
    device: str
    gpu: str | None
    budget: str | None = None
    candidates: Sequence[str] | None = None

    def checked_recipe(self) -> AskedRecipe:
        """The recipe, with a model named in it or beside it.

        Raises:
            InvalidInputError: It is none, or there is no model.
        """
        recipe = load_recipe(
            self.recipe,
            group_size=self.group_size,
            budget=self.budget,
            candidates=self.candidates,
        )
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


def _job(positional: str | None, recipe: str | None, **values: Any) -> Job:
    if positional and recipe:
        raise click.BadParameter(
            f"is given twice: {recipe} and {positional}", param_hint="'--recipe'"
        )
    return Job(recipe=recipe or positional or "gptq", **values)


def _compilation(graph: str, recipes: Sequence[str], **values: Any) -> Compilation:
    return prepare(GRAPHS[graph], CompileOptions(recipes=own_recipes(recipes), **values))


def _options(
    name: str, kind: Callable[..., Any], *options: Callable[[Any], Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """One decorator for several options, of which ``kind`` makes one argument of the command."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def collecting(**values: Any) -> None:
            value = kind(**{option: values.pop(option) for option in names})
            command(**values, **{name: value})

        before = len(getattr(collecting, "__click_params__", ()))
        for option in reversed(options):
            option(collecting)
        parameters: list[click.Parameter] = vars(collecting)["__click_params__"]
        names = [str(each.name) for each in parameters[before:]]
        return collecting

    return decorate


_CLUSTER = (
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
_STORE = click.option(
    "--store",
    help="Where the steps keep their work: a folder, or s3://bucket/prefix.  "
    f"[default: {LOCAL_STORE}, in Kubeflow the profile's]",
)
_PUBLISH_TO = click.option(
    "--publish-to",
    default="",
    help="Where to publish: a folder, s3://bucket/prefix, oci://registry/repository[:tag], or "
    "hf://org/name.  [default: the recipe's]",
)
_DEVICE = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="What the steps compute on.",
)
_GPU = click.option(
    "--gpu",
    type=click.Choice(list(HARDWARE)),
    help="What the plan reckons with.  [default: the cluster's; cpu on this machine]",
)
runner_option = click.option(
    "--runner",
    type=click.Choice(["process", "docker", "kubeflow"]),
    default="process",
    show_default=True,
    help="What runs a step: a process of this Python environment, a container of its image, or "
    "Kubeflow.",
)
cluster_options = _options("options", CompileOptions, *_CLUSTER)
compilation_options = _options(
    "compilation",
    _compilation,
    click.option(
        "--recipe",
        "recipes",
        multiple=True,
        help="A recipe of your own that the form of a run offers too; several with several "
        "options.",
    ),
    click.option(
        "--pipeline",
        "graph",
        type=click.Choice(list(GRAPHS)),
        default=QUANTIZE.name,
        show_default=True,
        help="What to compile: the quantization, or one look for a new release, with it in it.",
    ),
    *_CLUSTER,
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
    _job,
    click.option(
        "--model",
        default="",
        help="A folder, a .gguf file, hf://org/name@revision, or s3://bucket/prefix.  "
        "[default: the recipe's]",
    ),
    # As --recipe, for what was written before that was the word for it.
    click.argument("positional", metavar="[RECIPE]", required=False),
    click.option(
        "--recipe", show_default="gptq", help="A file, or the name of a recipe that ships."
    ),
    click.option("--group-size", help="A number or auto, in the place of the recipe's."),
    *search_options,
    _STORE,
    click.option(
        "--num-ranges",
        callback=lambda _context, _option, value: (
            0 if value is None else range_count(value) or AUTO
        ),
        help="Ranges of blocks that are quantized in parallel; auto: as many as end soonest.  "
        "[default: the recipe's]",
    ),
    _PUBLISH_TO,
    _DEVICE,
    _GPU,
)


def watch_options(command: Callable[..., None]) -> Callable[..., None]:
    """Those of a run that are the same for every recipe that is watched."""
    for option in (_GPU, _DEVICE, _PUBLISH_TO, _STORE):
        command = option(command)
    return command


def own_recipes(names: Sequence[str]) -> dict[str, AskedRecipe]:
    """Recipes by the names that the form of a run offers them by.

    Raises:
        InvalidInputError: One is none, or two have one name.
    """
    stems = [Path(name).stem for name in names]
    problems = [
        Problem(f"--recipe {name}", "is called as another one is", "rename it")
        for index, name in enumerate(names)
        if stems[index] in stems[:index]
    ]
    if problems := problems + recipe_problems(names):
        raise InvalidInputError(problems)
    return dict(zip(stems, map(load_recipe, names), strict=True))


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


@contextmanager
def compiled_for(kubeflow: Kubeflow, compilation: Compilation) -> Iterator[Path]:
    """The compiled pipeline in a file; says which of its retries this Kubeflow will not do."""
    with compiled(compilation) as file:
        if note := kubeflow.note_on_retries(file):
            click.echo(f"note: {note}", err=True)
        yield file


def absolute(address: str) -> str:
    """A local folder as an absolute path; any other address as it is."""
    return address if not address or "://" in address else str(Path(address).absolute())
