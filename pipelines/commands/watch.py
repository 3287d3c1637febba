"""``quantlib watch``: starts a run for every release that is not quantized yet."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from components._images import named_images, read_lock
from pipelines.commands.options import (
    LOCAL_STORE,
    compile_options,
    require_reachable,
    server_options,
)
from pipelines.compiling import CompileOptions
from pipelines.kubeflow.client import Server
from pipelines.profiles import load_profile
from quantlib.checks.recipe import load_recipe
from quantlib.errors import GateFailedError, InvalidInputError, Problem, QuantlibError
from quantlib.planning import HARDWARE
from quantlib.publishing.jobs import published_of
from quantlib.recipe import AskedRecipe
from quantlib.runtime.keeper import kept
from quantlib.runtime.process_group import end_kept
from quantlib.store import lease, open_store
from quantlib.watching import Job, find_job

_GRACE = 60.0
"""Seconds that a run gets to end its steps, which get less."""

_SUFFIXES = (".yaml", ".yml", ".json")
_EXAMPLES = """\b
Examples:
  quantlib watch llama-w4.yaml llama-w8.yaml --once --publish-to ./published
  quantlib watch llama-w4.yaml --interval 3600 --store s3://bucket/store \\
      --publish-to s3://bucket/models --runner kubeflow --host http://127.0.0.1:8080
"""


class Outcome(StrEnum):
    """What became of one recipe in one look."""

    UP_TO_DATE = "up to date"
    DONE = "quantized"
    STARTED = "started"
    REFUSED = "refused by the gate"
    FAILED = "failed"


@dataclass(frozen=True)
class Look:
    """One look at one recipe.

    Attributes:
        detail: Where the checkpoint is, or what went wrong.
    """

    recipe: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Starter:
    """How runs are started.

    Attributes:
        store: Where the steps keep their work.
        destination: Where checkpoints are published; empty for the recipe's.
        runner: process, docker or kubeflow.
        arguments: Further arguments of ``quantlib run``.
        images: What the steps run in.
        timeout: Seconds that a run may take.
    """

    store: str
    destination: str
    runner: str
    arguments: tuple[str, ...]
    images: tuple[str, ...]
    timeout: float


@click.command("watch", epilog=_EXAMPLES)
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPES...")
@click.option("--once", is_flag=True, help="Look once and end.")
@click.option(
    "--interval",
    type=click.FloatRange(min=1),
    default=3600,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option(
    "--store",
    default=LOCAL_STORE,
    show_default=True,
    help="Where the steps keep their work: a folder, or s3://bucket/prefix.",
)
@click.option("--publish-to", default="", help="Where to publish.  [default: each recipe's]")
@click.option(
    "--runner",
    type=click.Choice(["process", "docker", "kubeflow"]),
    default="process",
    show_default=True,
    help="What runs a step: a process of this Python environment, a container of its image, or "
    "Kubeflow.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=86400,
    show_default=True,
    help="Seconds after which a run on this machine is ended, so that the others have their turn.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="What the steps compute on.",
)
@click.option(
    "--gpu",
    type=click.Choice(list(HARDWARE)),
    help="What the plan reckons with.  [default: the cluster's; cpu on this machine]",
)
@compile_options
@server_options
def watch(
    recipes: tuple[str, ...],
    once: bool,
    interval: float,
    store: str,
    publish_to: str,
    runner: str,
    timeout: float,
    device: str,
    gpu: str | None,
    options: CompileOptions,
    server: Server,
) -> None:
    """Quantize every release of the models that RECIPES name: files, or folders of them.

    Each look resolves the models, and starts a run for a job that has no published checkpoint: a
    job is a recipe on one release, with the texts, images and code of now. A source that cannot be
    resolved is reported and does not stop the others. Recipes are read again at every look.

    With --once it exits with 0 when all is up to date, done or started, 1 when a source or a run
    failed, 2 when a recipe is invalid, 3 when a checkpoint was refused by the gate.
    """
    arguments = ["--cluster", options.cluster, "--device", device]
    arguments += ["--gpu", gpu] if gpu else []
    arguments += ["--allow-floating"] if options.allow_floating else []
    images = named_images()
    if options.images_lock is not None:
        images = read_lock(options.images_lock)
        arguments += ["--images-lock", str(options.images_lock)]
    if runner == "kubeflow":
        for name, value in asdict(server).items():
            arguments += [f"--{name.replace('_', '-')}", value]
    # A process runs in no image.
    starter = Starter(
        store,
        publish_to,
        runner,
        tuple(arguments),
        () if runner == "process" else images.of_quantization,
        timeout,
    )
    load_profile(options.cluster)
    _require_valid(names := recipe_names(recipes))
    while True:
        looks = [look_once(name, starter) for name in names]
        if once:
            sys.exit(exit_code(looks))
        time.sleep(interval)
        with suppress(InvalidInputError):  # a folder may be empty for a moment
            names = recipe_names(recipes)


def recipe_names(given: Sequence[str]) -> list[str]:
    """What was given, with the recipes in a folder in the place of the folder.

    Raises:
        InvalidInputError: A folder holds none.
    """
    names: list[str] = []
    for name in given:
        if not Path(name).is_dir():
            names.append(name)
            continue
        found = sorted(path for path in Path(name).iterdir() if path.suffix in _SUFFIXES)
        if not found:
            raise InvalidInputError.one(name, "holds no recipe", f"end its name in {_SUFFIXES[0]}")
        names += map(str, found)
    return names


def _require_valid(names: Sequence[str]) -> None:
    problems: list[Problem] = []
    for name in names:
        try:
            load_recipe(name)
        except InvalidInputError as error:
            problems += error.problems
    if problems:
        raise InvalidInputError(problems)


def look_once(name: str, starter: Starter) -> Look:
    """Looks at one recipe and starts what is to be done; says so in a line."""
    look = _look(name, starter)
    click.echo(f"{time.strftime('%H:%M:%S')} {look.recipe}: {look.outcome}: {look.detail}")
    return look


def exit_code(looks: Sequence[Look]) -> int:
    """What the command exits with after these looks."""
    outcomes = {look.outcome for look in looks}
    if Outcome.FAILED in outcomes:
        return 1
    return GateFailedError.exit_code if Outcome.REFUSED in outcomes else 0


def _look(name: str, starter: Starter) -> Look:
    try:
        recipe = load_recipe(name)
        job = find_job(recipe, starter.destination, starter.images)
        if job.published is not None:
            return Look(name, Outcome.UP_TO_DATE, job.published)
        if starter.runner == "kubeflow":
            require_reachable(recipe, job.release.address, starter.store, job.destination)
        with lease(open_store(starter.store), f"jobs/{job.digest.removeprefix('sha256:')}"):
            # Another watcher may have had it until now.
            if (published := published_of(job.destination, job.digest)) is not None:
                return Look(name, Outcome.UP_TO_DATE, published)
            code = _run(name, recipe, job, starter)
    except (QuantlibError, OSError) as error:
        return Look(name, Outcome.FAILED, "; ".join(str(error).splitlines()))
    if code == GateFailedError.exit_code:
        return Look(name, Outcome.REFUSED, job.release.address)
    if code is None:
        what = f"the run took more than {starter.timeout:.0f} s and was ended"
        return Look(name, Outcome.FAILED, what)
    if code:
        return Look(name, Outcome.FAILED, f"the run exited with {code}")
    if starter.runner == "kubeflow":
        return Look(name, Outcome.STARTED, job.release.address)
    published = published_of(job.destination, job.digest)
    return Look(name, Outcome.DONE, published or job.release.address)


def _run(name: str, recipe: AskedRecipe, job: Job, starter: Starter) -> int | None:
    """Runs a job and returns its exit code; None where it took too long and was ended."""
    with TemporaryDirectory(prefix="quantlib-watch-") as folder:
        # The file itself may be another one by now than the job is of.
        file = Path(folder, f"{Path(name).stem}.json")
        file.write_text(recipe.canonical_json(), encoding="utf-8")
        command = [sys.executable, "-m", "quantlib", "run", "--recipe", str(file)]
        command += ["--runner", starter.runner]
        command += ["--model", job.release.address, "--store", starter.store]
        command += ["--publish-to", job.destination, "--job", job.digest, *starter.arguments]
        process = subprocess.Popen(kept(command, _GRACE), start_new_session=True)
        try:
            return process.wait(starter.timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_kept(process, _GRACE)
