"""``quantlib watch``."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click

from components._images import named_images, read_lock
from pipelines.commands.options import (
    LOCAL_STORE,
    cluster_options,
    runner_option,
    server_options,
    watch_options,
)
from pipelines.compiling import CompileOptions
from pipelines.kubeflow.client import Server
from pipelines.profiles import load_profile
from quantlib.checks.recipe import recipe_problems
from quantlib.errors import InvalidInputError
from quantlib.runtime.log import about, start_log
from quantlib.telemetry.settings import environment_problems
from quantlib.watching.figures import WatcherFigures
from quantlib.watching.looks import Look, Starter, exit_code, look, recipe_names

_EXAMPLES = """\b
Examples:
  quantlib watch llama-w4.yaml llama-w8.yaml --once --publish-to ./published
  quantlib watch llama-w4.yaml --interval 3600 --store s3://bucket/store \\
      --publish-to s3://bucket/models --runner kubeflow --host http://127.0.0.1:8080
"""


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
    "--metrics-port",
    type=click.IntRange(1, 65535),
    help="Answer Prometheus here with figures of the looks and of what was published last.",
)
@runner_option
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=86400,
    show_default=True,
    help="Seconds after which a run on this machine is ended, so that the others have their turn.",
)
@watch_options
@cluster_options
@server_options
def watch(
    recipes: tuple[str, ...],
    once: bool,
    interval: float,
    metrics_port: int | None,
    runner: str,
    timeout: float,
    store: str | None,
    publish_to: str,
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
    if once and metrics_port is not None:
        raise click.UsageError("--metrics-port is of no use with --once: nobody could ask")
    arguments = ["--cluster", options.cluster, "--device", device]
    arguments += ["--gpu", gpu] if gpu else []
    arguments += ["--allow-floating"] if options.allow_floating else []
    images = named_images()
    if options.images_lock is not None:
        images = read_lock(options.images_lock)
        arguments += ["--images-lock", str(options.images_lock)]
    profile = load_profile(options.cluster)
    if runner == "kubeflow":
        store = store or profile.store
        for name, value in asdict(server).items():
            arguments += [f"--{name.replace('_', '-')}", value]
    starter = Starter(
        store or LOCAL_STORE,
        publish_to,
        runner,
        tuple(arguments),
        () if runner == "process" else images.of_quantization,  # a process runs in no image
        timeout,
    )
    names = recipe_names(recipes)
    if problems := environment_problems() + recipe_problems(names):
        raise InvalidInputError(problems)
    start_log()
    figures = None
    if metrics_port is not None:
        figures = WatcherFigures(starter.store)
        figures.serve(metrics_port)
    while True:
        looks = [_look(name, starter, figures) for name in names]
        if once:
            sys.exit(exit_code(looks))
        time.sleep(interval)
        with suppress(InvalidInputError):  # a folder may be empty for a moment
            names = recipe_names(recipes)


def _look(name: str, starter: Starter, figures: WatcherFigures | None) -> Look:
    """Looks at one recipe; says what came of it, in a line and to Prometheus."""
    started = time.monotonic()
    found = look(name, starter)
    if figures is not None:
        figures.take(found, time.monotonic() - started)
    outcome = found.outcome
    with about(level=outcome.level, recipe=Path(found.recipe).stem, outcome=outcome.value):
        click.echo(f"{time.strftime('%H:%M:%S')} {found.recipe}: {outcome}: {found.detail}")
    return found
