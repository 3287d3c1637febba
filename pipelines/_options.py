"""Options that several commands take, and what they mean to a run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipelines.compiling import NAME, PIPELINES, CompileOptions
from pipelines.kubeflow import HOST_VARIABLE, Server
from quantlib.checks.recipe import load_recipe, recipe_from_text
from quantlib.errors import InvalidInputError, Problem
from quantlib.planning import HARDWARE
from quantlib.recipe import Recipe
from quantlib.steps.plan import AUTO
from quantlib.text.addresses import LocalText, Text, parse_text
from quantlib.text.wanted import wanted_texts

PIPELINE_NAME = "pipeline.yaml"


@dataclass(frozen=True)
class Job:
    """What is to be quantized, beside the recipe, and where it goes.

    Attributes:
        num_ranges: 0 for the recipe's, -1 for as many as end soonest.
        gpu: What the plan reckons with; None for the cluster's.
    """

    model: str
    store: str
    num_ranges: int
    publish_to: str
    device: str
    gpu: str | None


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
        names = [str(parameter.name) for parameter in parameters[before:]]
        return collecting

    return decorate


pipeline_option = click.option(
    "--pipeline",
    type=click.Choice(PIPELINES),
    default=NAME,
    show_default=True,
    help="quantize: one run; watch: a look at a model, and a run where its release is new.",
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
    click.option("--experiment", default=NAME, show_default=True, help="What groups the runs."),
    click.option(
        "--service-account",
        default="quantlib-runner",
        show_default=True,
        help="What the pods of a run are; empty for the server's default.",
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
    click.option(
        "--store",
        default=".quantlib/store",
        show_default=True,
        help="Where the steps keep their work: a folder, or s3://bucket/prefix.",
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


def checked_recipe(recipe: str, model: str, group_size: int | None = None) -> Recipe:
    """A recipe by name or file, with a model named in it or beside it.

    Args:
        recipe: Its name or file.
        model: Named beside it; empty where it is named in it.
        group_size: In the place of the recipe's; None for the recipe's.

    Raises:
        InvalidInputError: It is none, or there is no model.
    """
    checked = load_recipe(recipe, group_size)
    if not (model or checked.model):
        raise InvalidInputError.one(recipe, "names no model", "give one with --model")
    return checked


def run_parameters(recipe: Recipe, job: Job, digest: str = "") -> dict[str, Any]:
    """The pipeline's parameters; those of the cluster's profile are left out.

    Args:
        recipe: What to do.
        job: On what.
        digest: Of the watcher's job that asks; empty where none does.
    """
    parameters = {
        "recipe": recipe.canonical_json(),
        "source": job.model,
        "store": absolute(job.store),
        "num_ranges": job.num_ranges,
        "destination": absolute(job.publish_to),
        "device": job.device,
    }
    optional = {"gpu": job.gpu or "", "job": digest}
    return parameters | {name: value for name, value in optional.items() if value}


def require_reachable(parameters: dict[str, Any]) -> None:
    """Checks that a run elsewhere does not need files or folders of this machine."""
    recipe = recipe_from_text(parameters["recipe"])
    addresses = {
        "--model": parameters["source"] or recipe.model or "",
        "--store": parameters["store"],
        "--publish-to": parameters["destination"] or recipe.publish.destination or "",
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
