"""``python -m pipelines``: compiles the quantization pipeline, or runs it on this machine."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.docker import DockerRunner
from pipelines.ir import Container
from pipelines.local import RunResult, run_pipeline
from pipelines.process import ProcessRunner, Runner
from pipelines.reader import load_pipeline
from pipelines.scheduler import StepRun
from pipelines.status import log_tail
from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.evaluation.engines import choose_engine
from quantlib.preflight import input_problems, writable_problems
from quantlib.recipe import load_recipe

PIPELINE_NAME = "pipeline.yaml"
RUNNERS = ("process", "docker")
_CPUS = len(os.sched_getaffinity(0))
_COMPILE_EXAMPLES = """\b
Examples:
  python -m pipelines compile
  python -m pipelines compile --output build/quantize.yaml
  QUANTLIB_IMAGE=my/quantlib:1 python -m pipelines compile
"""
_RUN_EXAMPLES = """\b
Examples:
  python -m pipelines run gptq --model ./my-model
  python -m pipelines run recipe.yaml --model hf://org/name@main --num-ranges 3
  python -m pipelines run gptq --model model.gguf --publish-to ./published
  python -m pipelines run gptq --model ./my-model --runner docker
"""


@click.group(epilog="python -m pipelines COMMAND --help shows examples.")
def main() -> None:
    """Compiles the quantization pipeline, or runs it on this machine."""


@main.command("compile", epilog=_COMPILE_EXAMPLES)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("build") / PIPELINE_NAME,
    show_default=True,
    help="File to write.",
)
def compile_command(output: Path) -> None:
    """Writes the pipeline in the form that Kubeflow Pipelines takes."""
    _compile(output)
    click.echo(output)


@main.command("run", epilog=_RUN_EXAMPLES)
@click.argument("recipe")
@click.option(
    "--model",
    default="",
    help="A folder, a .gguf file, or hf://org/name@revision.  [default: the recipe's]",
)
@click.option(
    "--store", default=".quantlib/store", show_default=True, help="Where the steps keep their work."
)
@click.option(
    "--num-ranges",
    type=click.IntRange(1, 64),
    help="Ranges of blocks that are quantized in parallel.  [default: the recipe's]",
)
@click.option("--publish-to", default="", help="Folder to publish in.  [default: the recipe's]")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="What the steps compute on.",
)
@click.option(
    "--parallel",
    type=click.IntRange(min=1),
    default=min(4, _CPUS),
    show_default=True,
    help="Steps that run at once.",
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Logs and results of this run.  [default: .quantlib/runs/<time>]",
)
@click.option(
    "--runner",
    type=click.Choice(RUNNERS),
    default="process",
    show_default=True,
    help="What runs a step: a process of this Python environment, or a container of its image.",
)
@click.option(
    "--docker-network",
    default="bridge",
    show_default=True,
    metavar="NAME",
    help="Network of the containers that need one; host: with what listens on this machine only.",
)
def run_command(
    recipe: str,
    model: str,
    store: str,
    num_ranges: int | None,
    publish_to: str,
    device: str,
    parallel: int,
    run_dir: Path | None,
    runner: str,
    docker_network: str,
) -> None:
    """Compiles the pipeline and runs it here, by RECIPE: a file, or the name of a shipped recipe.

    The store keeps what every step finished: after an interruption, the same command continues.
    Exits with 0, or as the step that failed did: 2 for invalid input, 3 for a checkpoint that was
    judged and refused.
    """
    checked = load_recipe(recipe)
    if not (model or checked.model):
        raise InvalidInputError.one(recipe, "names no model", "give one with --model")
    if runner == "process":
        choose_engine(checked.validation.engine)
    problems = input_problems(checked, model or checked.model or "", Path(store))
    problems += writable_problems(Path(publish_to or checked.publish.destination or store))
    if problems:
        raise InvalidInputError(problems)
    folder = _run_folder(run_dir)
    file = folder / PIPELINE_NAME
    _compile(file)
    started = _start_runner(runner, docker_network, file)
    console = Console()
    result = run_pipeline(
        file,
        {
            "recipe": checked.canonical_json(),
            "source": model,
            "store": _absolute(store),
            "num_ranges": num_ranges or 0,  # 0: the recipe decides
            "destination": _absolute(publish_to),
            "device": device,
        },
        folder,
        started,
        parallel,
        console,
    )
    _report(result, folder, store, console)
    sys.exit(result.exit_code)


def _compile(file: Path) -> None:
    try:
        from pipelines.quantize import compile_pipeline
    except ModuleNotFoundError as error:
        if error.name != "kfp":
            raise
        raise QuantlibError("kfp is not installed; pip install 'quantlib[pipelines]'") from None
    compile_pipeline(file)


def _start_runner(name: str, network: str, file: Path) -> Runner:
    """The runner, which can run what a compiled pipeline asks for."""
    if name == "process":
        return ProcessRunner()
    implementations = [
        component.implementation for component in load_pipeline(file).components.values()
    ]
    runner = DockerRunner(network)
    asyncio.run(
        runner.require({part.image for part in implementations if isinstance(part, Container)})
    )
    return runner


def _run_folder(given: Path | None) -> Path:
    """The folder of the run: empty, or one that a run has used before."""
    if given is None:
        return Path(".quantlib/runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    if given.is_dir() and any(given.iterdir()) and not (given / PIPELINE_NAME).exists():
        raise InvalidInputError.one(str(given), "is not empty, and no folder of a run")
    return given


def _absolute(address: str) -> str:
    return address if not address or "://" in address else str(Path(address).absolute())


def _report(result: RunResult, folder: Path, store: str, console: Console) -> None:
    table = Table("step", "state", "seconds", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for run in result.runs:
        seconds = f"{run.seconds:.1f}" if run.attempts else ""
        table.add_row(escape(run.name), run.state.value, seconds)
    console.print()
    console.print(table)
    outputs = {"run": str(folder / "run.json"), **_main_outputs(result)}
    for name, value in outputs.items():
        click.echo(f"{name + ':':<11}{value}")
    if result.signal:
        message = f"Interrupted by {result.signal.name}. What the steps finished is in {store}: "
        click.echo(message + "the same command continues from there.", err=True)
    elif result.failure:
        _explain(result.failure)


def _main_outputs(result: RunResult) -> dict[str, str]:
    found = {}
    if judged := result.outputs.get("validate"):
        found["verdict"] = judged.parameters["verdict"]
        found["report"] = str(judged.artifacts["report"][0].path)
    if published := result.outputs.get("publish"):
        found["published"] = published.parameters["address"]
    return found


def _explain(failure: StepRun) -> None:
    click.echo(f"\n{failure.error}", err=True)
    log = failure.folder / "log.txt"
    if lines := log_tail(log, lines=20):
        click.echo(f"The end of {log}:", err=True)
        for line in lines:
            click.echo(f"  {line}", err=True)


if __name__ == "__main__":
    try:
        main()
    except QuantlibError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
