"""``quantlib run``."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.commands.options import (
    LOCAL_STORE,
    Job,
    cluster_options,
    cluster_settings,
    compiled_for,
    job_options,
    runner_option,
    server_options,
)
from pipelines.compiling import Compilation, CompileOptions, graph_of, prepare
from pipelines.kubeflow.client import Kubeflow, Server
from pipelines.local.containers import DockerRunner
from pipelines.local.gpus import find_gpus
from pipelines.local.processes import ProcessRunner, Runner
from pipelines.local.run import RESULT_NAME, RunResult, run_graph
from pipelines.local.scheduler import Execution
from pipelines.local.state import State
from pipelines.local.status import log_tail
from quantlib.checks.machine import place_problems
from quantlib.checks.run import input_problems
from quantlib.checks.tasks import uninstalled_problems
from quantlib.cli.result_options import print_json, progress, result_options
from quantlib.errors import InvalidInputError
from quantlib.evaluation.choose_engine import choose_engine
from quantlib.publishing.destination import storage_uri
from quantlib.publishing.opening import publishing_problems
from quantlib.recipe import AskedRecipe
from quantlib.report.model import HTML_NAME
from quantlib.report.text import FIGURES, figures_line
from quantlib.runtime.cpus import available_cpus
from quantlib.runtime.log import about, start_log
from quantlib.sources.naming import named
from quantlib.telemetry.notices import Notice, notify
from quantlib.telemetry.settings import environment_problems

_KIND = "run-result"
_EXAMPLES = """\b
Examples:
  quantlib run --model ./my-model
  quantlib run --recipe recipe.yaml --model hf://org/name@main --num-ranges 3
  quantlib run --model model.gguf --publish-to ./published
  quantlib run --model ./my-model --runner docker
  quantlib run --model hf://org/name --store s3://bucket/store \\
      --runner kubeflow --host http://127.0.0.1:8080 --namespace quantlib
"""


@click.command("run", epilog=_EXAMPLES)
@job_options
@click.option("--job", "digest", default="", help="Digest of the job that asks, as watch gives it.")
@click.option(
    "--parallel",
    type=click.IntRange(min=1),
    default=min(4, available_cpus()),
    show_default="as many as there are CPUs, at most 4",
    help="Steps that run at once.",
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Logs and results of this run.  [default: .quantlib/runs/<time>]",
)
@runner_option
@click.option(
    "--retries",
    type=click.IntRange(0, 10),
    default=0,
    show_default=True,
    help="Times that a step which failed is started again; the profile says so for Kubeflow.",
)
@click.option(
    "--docker-network",
    default="bridge",
    show_default=True,
    metavar="NAME",
    help="Network of the containers that need one; host: with what listens on this machine only.",
)
@cluster_options
@server_options
@result_options
def run_command(
    job: Job,
    digest: str,
    parallel: int,
    run_dir: Path | None,
    runner: str,
    retries: int,
    docker_network: str,
    options: CompileOptions,
    server: Server,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run the whole workflow, from the model to what is published.

    The store keeps what every step finished: after an interruption, the same command continues.
    Exits with 0, or as the step that failed did: 2 for invalid input, 3 for a checkpoint that was
    judged and refused. With --runner kubeflow it ends when the run is started; a --job that is
    running there is not started again.
    """
    if problems := environment_problems():
        raise InvalidInputError(problems)
    start_log(output=not as_json)
    recipe = named(job.checked_recipe(), job.model)
    options = replace(options, recipes={job.name: recipe}, job=digest)
    if runner == "kubeflow":
        started, page = _start_in_kubeflow(recipe, job, digest, options, server)
        if as_json:
            print_json(_KIND, {"state": "started" if started else "running", "run": page})
        else:
            click.echo(page if started else f"running already: {page}")
        return
    if runner == "process":
        options = replace(options, allow_floating=True)
        choose_engine(recipe.validation.engine)
        if problems := uninstalled_problems(recipe):
            raise InvalidInputError(problems)
    store = job.store or LOCAL_STORE
    job = replace(job, store=store)
    _require_possible(recipe, job, store)
    graph = graph_of(recipe)
    compilation = prepare(graph, options)
    execution = Execution(
        _run_folder(run_dir),
        _start_runner(runner, docker_network, compilation),
        parallel,
        compilation.profile.retries.model_copy(update={"count": retries}),
        compilation.images,
        find_gpus(),
    )
    settings = {"publish_to": "", "gpu": "cpu"} | job.settings()
    settings["recipe"] = recipe.canonical_json()
    # Profiles are of clusters: here, disk and CPUs are what there is.
    constants = replace(compilation.constants, recipes={}, parallel=parallel, scratch="")
    with progress(quiet=quiet), about(run=execution.folder.name):
        console = Console(stderr=as_json, quiet=quiet)
        result = run_graph(graph, settings, constants, execution, console)
    if as_json:
        print_json(_KIND, _result(result, execution.folder, store))
    else:
        _print(result, execution.folder)
    _explain(result, store)
    _notify(result, execution.folder.name, job.model or recipe.model or "")
    sys.exit(result.exit_code)


def _start_in_kubeflow(
    recipe: AskedRecipe, job: Job, digest: str, options: CompileOptions, server: Server
) -> tuple[bool, str]:
    """Whether a run was started, since none of the job was there, and the address of its page."""
    graph = graph_of(recipe)
    compilation = prepare(graph, options)
    settings = cluster_settings(job, recipe, compilation)
    kubeflow = Kubeflow(server)
    mark = digest.removeprefix("sha256:")[:12] or time.strftime("%Y%m%d-%H%M%S")
    if digest and (running := kubeflow.running(mark)):
        return False, running
    with compiled_for(kubeflow, compilation) as file:
        return True, kubeflow.run(file, settings, f"{graph.name}-{job.name}-{mark}")


def _require_possible(recipe: AskedRecipe, job: Job, store: str) -> None:
    model = job.model or recipe.model or ""
    destination = job.publish_to or recipe.publish.destination or ""
    problems = input_problems(recipe, model, store, validated_on="auto")
    problems += publishing_problems(destination or store, recipe.publish.base_image or "")
    problems += place_problems(recipe, model, {"the store": store})
    problems += place_problems(recipe, model, {"the destination": destination})
    if problems:
        raise InvalidInputError(problems)


def _start_runner(name: str, network: str, compilation: Compilation) -> Runner:
    """The runner, which has what the steps run in."""
    if name == "process":
        return ProcessRunner()
    runner = DockerRunner(network)
    asyncio.run(runner.require(set(compilation.images.of_quantization)))
    return runner


def _run_folder(given: Path | None) -> Path:
    """The folder of the run: empty, or one that a run has used before."""
    if given is None:
        return Path(".quantlib/runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    if given.is_dir() and any(given.iterdir()) and not (given / RESULT_NAME).exists():
        raise InvalidInputError.one(str(given), "is not empty, and no folder of a run")
    return given


def _print(result: RunResult, folder: Path) -> None:
    console = Console()
    table = Table("step", "state", "seconds", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for run in result.runs:
        seconds = f"{run.seconds:.1f}" if run.attempts else ""
        table.add_row(escape(run.name), run.outcome, seconds)
    console.print()
    console.print(table)
    found = _main_outputs(result)
    lines = {"run": str(folder / RESULT_NAME), **found, "serve": found["storage_uri"]}
    del lines["storage_uri"]
    if figures := found["figures"]:
        lines["figures"] = figures_line(*map(figures.get, FIGURES))
    for name, value in lines.items():
        if value:
            click.echo(f"{name + ':':<11}{value}")


def _result(result: RunResult, folder: Path, store: str) -> dict[str, Any]:
    """What came of a run, for machines."""
    failure = result.failure
    return {
        "state": result.state.value,
        "exit_code": result.exit_code,
        "seconds": round(result.seconds, 3),
        **_main_outputs(result),
        "failure": failure and {"step": failure.name, "error": failure.error},
        "run": str(folder),
        "store": store,
    }


def _explain(result: RunResult, store: str) -> None:
    """Says on standard error what ended a run before its time."""
    if result.signal:
        finished = ", ".join(run.name for run in result.runs if run.state is State.SUCCEEDED)
        click.echo(
            f"Interrupted by {result.signal.name}. Finished and kept in {store}: "
            f"{finished or 'nothing'}. The same command goes on after that; of a range in the "
            "making, the blocks that were finished are kept too.",
            err=True,
        )
    elif failure := result.failure:
        click.echo(f"\n{failure.error}", err=True)
        log = failure.folder / "log.txt"
        if lines := log_tail(log, lines=20):
            click.echo(f"The end of {log}:", err=True)
            for line in lines:
                click.echo(f"  {line}", err=True)


def _notify(result: RunResult, run: str, model: str) -> None:
    """Tells the webhook, where there is one, how a run ended that nobody interrupted."""
    if failure := result.failure:
        said = log_tail(failure.folder / "log.txt") or [failure.error]
        reason = said[0].removeprefix(f"{failure.step}: ")
        notify(Notice(run, model, failure.name, failure.exit_code, reason))
    elif result.state is State.SUCCEEDED:
        published = result.outputs["publish"].parameters["address"]
        notify(Notice(run, model, "publish", 0, published))


def _main_outputs(result: RunResult) -> dict[str, Any]:
    """What a run is made for, by name; None where it did not come to it."""
    found = dict.fromkeys(("verdict", "reason", "figures", "report", "published", "storage_uri"))
    if judged := result.outputs.get("validate"):
        found["verdict"] = judged.parameters["verdict"]
        found["reason"] = judged.parameters.get("reason")
        for metrics in judged.artifacts.get("metrics", ()):
            found["figures"] = {name: metrics.metadata.get(name) for name in FIGURES}
        brief = judged.artifacts["report"][0].path
        whole = brief.with_name(HTML_NAME)
        found["report"] = str(whole if whole.exists() else brief)
    if published := result.outputs.get("publish"):
        found["published"] = published.parameters["address"]
        found["storage_uri"] = storage_uri(published.parameters["address"])
    return found
