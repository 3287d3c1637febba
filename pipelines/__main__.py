"""``python -m pipelines``: compiles the quantization pipeline, runs it here or in Kubeflow."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import time
from dataclasses import astuple, replace
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines._kubeflow_commands import schedule_command, upload_command
from pipelines._options import (
    PIPELINE_NAME,
    Job,
    checked_recipe,
    compile_options,
    job_options,
    pipeline_option,
    require_reachable,
    run_parameters,
    server_options,
)
from pipelines.compiling import NAME, CompileOptions, compile_to, write_kubernetes_manifests
from pipelines.docker import DockerRunner
from pipelines.kubeflow import Kubeflow, Server
from pipelines.local import RunResult, run_pipeline
from pipelines.process import ProcessRunner, Runner
from pipelines.reader import load_pipeline
from pipelines.scheduler import State, StepRun
from pipelines.status import log_tail
from pipelines.watch import watch
from quantlib import __version__
from quantlib.checks.machine import destination_problems, place_problems
from quantlib.checks.run import input_problems
from quantlib.cli.watch import PROGRAM_VARIABLE
from quantlib.errors import (
    InvalidInputError,
    QuantlibError,
    VerificationError,
    naming,
    os_error_line,
)
from quantlib.evaluation.choose_engine import choose_engine
from quantlib.report.model import HTML_NAME
from quantlib.report.text import figures_line
from quantlib.runtime.cpus import available_cpus
from quantlib.sources.naming import named

RUNNERS = ("process", "docker", "kubeflow")
_CPUS = available_cpus()
_COMPILE_EXAMPLES = """\b
Examples:
  python -m pipelines compile
  python -m pipelines compile --cluster local --output build/quantize.yaml
  python -m pipelines compile --images-lock build/images.lock.json --kubernetes
  python -m pipelines compile --target argo --output build/workflow.yaml
  python -m pipelines compile --pipeline watch --output build/watch.yaml
"""
_RUN_EXAMPLES = """\b
Examples:
  python -m pipelines run gptq --model ./my-model
  python -m pipelines run recipe.yaml --model hf://org/name@main --num-ranges 3
  python -m pipelines run gptq --model model.gguf --publish-to ./published
  python -m pipelines run gptq --model ./my-model --runner docker
  python -m pipelines run gptq --model hf://org/name --store s3://bucket/store \\
      --runner kubeflow --host http://127.0.0.1:8080 --namespace quantlib
"""


def _namespace(_: click.Context, __: click.Parameter, value: str) -> str:
    """A name as RFC 1123 has labels, which is what Kubernetes takes; or none."""
    if value and (len(value) > 63 or not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", value)):
        raise click.BadParameter(
            f"{value!r} is no namespace: at most 63 small letters, digits and dashes between them"
        )
    return value


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="python -m pipelines COMMAND --help shows examples.",
)
@click.version_option(__version__, prog_name="python -m pipelines")
def main() -> None:
    """Compiles the quantization pipeline, runs it on this machine, or in Kubeflow."""


@main.command("compile", epilog=_COMPILE_EXAMPLES)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("build") / PIPELINE_NAME,
    show_default=True,
    help="File to write.",
)
@click.option(
    "--target",
    type=click.Choice(["kubeflow", "argo"]),
    default="kubeflow",
    show_default=True,
    help="What takes the file.",
)
@click.option(
    "--kubernetes",
    is_flag=True,
    help="Also write the Pipeline and PipelineVersion objects, beside the file.",
)
@click.option(
    "--namespace",
    default="quantlib",
    show_default=True,
    callback=_namespace,
    help="Of the objects.",
)
@pipeline_option
@compile_options
def compile_command(
    output: Path,
    target: str,
    kubernetes: bool,
    namespace: str,
    pipeline: str,
    options: CompileOptions,
) -> None:
    """Writes a pipeline in the form that Kubeflow Pipelines takes, or Argo Workflows."""
    if target == "argo":
        if kubernetes:
            raise click.UsageError("--kubernetes goes with --target kubeflow")
        with naming(output):
            _compile_argo(output, options, pipeline, namespace)
    else:
        with naming(output):
            compile_to(output, options, pipeline)
    click.echo(output)
    if bare := [image for image in astuple(options.images()) if "/" not in image]:
        click.echo(
            f"note: no registry is named for {', '.join(bare)}: a cluster has to hold them "
            "already, or give --images-lock, which `make push-images` writes",
            err=True,
        )
    if kubernetes:
        objects = output.with_suffix(".kubernetes.yaml")
        write_kubernetes_manifests(output, objects, namespace)
        click.echo(objects)


def _compile_argo(output: Path, options: CompileOptions, pipeline: str, namespace: str) -> None:
    from pipelines.argo import write_workflow_template

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / PIPELINE_NAME
        compile_to(file, options, pipeline)
        write_workflow_template(load_pipeline(file), output, namespace=namespace)


main.add_command(upload_command)
main.add_command(schedule_command)
main.add_command(watch)


@main.command("run", epilog=_RUN_EXAMPLES)
@click.argument("recipe")
@job_options
@click.option("--group-size", type=int, help="In the place of the recipe's.")
@click.option("--job", "digest", default="", help="Digest of the job that asks, as watch gives it.")
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
    help="What runs a step: a process of this Python environment, a container of its image, or "
    "Kubeflow.",
)
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
@compile_options
@server_options
def run_command(
    recipe: str,
    job: Job,
    group_size: int | None,
    digest: str,
    parallel: int,
    run_dir: Path | None,
    runner: str,
    retries: int,
    docker_network: str,
    options: CompileOptions,
    server: Server,
) -> None:
    """Compiles the pipeline and runs it, by RECIPE: a file, or the name of a shipped recipe.

    The store keeps what every step finished: after an interruption, the same command continues.
    Exits with 0, or as the step that failed did: 2 for invalid input, 3 for a checkpoint that was
    judged and refused. With --runner kubeflow it ends when the run is started; a --job that is
    running there is not started again.
    """
    checked = named(checked_recipe(recipe, job.model, group_size), job.model)
    options = replace(options, recipe=checked)
    if runner == "kubeflow":
        parameters = run_parameters(checked, job, digest)
        require_reachable(parameters)
        kubeflow = Kubeflow(server)
        mark = digest.removeprefix("sha256:")[:12] or time.strftime("%Y%m%d-%H%M%S")
        if digest and (running := kubeflow.running(mark)):
            click.echo(f"running already: {running}")
            return
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / PIPELINE_NAME
            compile_to(file, options)
            click.echo(kubeflow.run(file, parameters, f"{NAME}-{Path(recipe).stem}-{mark}"))
        return
    if runner == "process":
        options = replace(options, allow_floating=True)
        choose_engine(checked.validation.engine)
    model = job.model or checked.model or ""
    destination = job.publish_to or checked.publish.destination or ""
    problems = input_problems(checked, model, job.store, validated_on="auto")
    problems += destination_problems(destination or job.store)
    problems += place_problems(checked, model, {"the store": job.store})
    problems += place_problems(checked, model, {"the destination": destination})
    if problems:
        raise InvalidInputError(problems)
    folder = _run_folder(run_dir)
    file = folder / PIPELINE_NAME
    with naming(file):
        compile_to(file, options, on_cluster=False)
    started = _start_runner(runner, docker_network, file)
    console = Console()
    parameters = run_parameters(checked, replace(job, gpu=job.gpu or "cpu"), digest)
    parameters["parallel"] = parallel
    result = run_pipeline(file, parameters, folder, started, parallel, console, retries)
    _report(result, folder, job.store, console)
    sys.exit(result.exit_code)


def _start_runner(name: str, network: str, file: Path) -> Runner:
    """The runner, which can run what a compiled pipeline asks for."""
    if name == "process":
        return ProcessRunner()
    runner = DockerRunner(network)
    containers = load_pipeline(file).containers.values()
    asyncio.run(runner.require({container.image for container in containers}))
    return runner


def _run_folder(given: Path | None) -> Path:
    """The folder of the run: empty, or one that a run has used before."""
    if given is None:
        return Path(".quantlib/runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    if given.is_dir() and any(given.iterdir()) and not (given / PIPELINE_NAME).exists():
        raise InvalidInputError.one(str(given), "is not empty, and no folder of a run")
    return given


def _report(result: RunResult, folder: Path, store: str, console: Console) -> None:
    table = Table("step", "state", "seconds", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for run in result.runs:
        seconds = f"{run.seconds:.1f}" if run.attempts else ""
        table.add_row(escape(run.name), run.outcome, seconds)
    console.print()
    console.print(table)
    outputs = {"run": str(folder / "run.json"), **_main_outputs(result)}
    for name, value in outputs.items():
        click.echo(f"{name + ':':<11}{value}")
    if result.signal:
        finished = ", ".join(run.name for run in result.runs if run.state is State.SUCCEEDED)
        click.echo(
            f"Interrupted by {result.signal.name}. Finished and kept in {store}: "
            f"{finished or 'nothing'}. The same command goes on after that; of a range in the "
            "making, the blocks that were finished are kept too.",
            err=True,
        )
    elif result.failure:
        _explain(result.failure)


_FIGURES = (
    "perplexity_original",
    "perplexity_quantized",
    "perplexity_increase",
    "kl_mean",
    "kl_standard_error",
    "top1_agreement",
)


def _main_outputs(result: RunResult) -> dict[str, str]:
    found = {}
    if judged := result.outputs.get("validate"):
        found["verdict"] = judged.parameters["verdict"]
        if reason := judged.parameters.get("reason"):
            found["reason"] = reason
        for metrics in judged.artifacts.get("metrics", ()):
            found["figures"] = figures_line(*map(metrics.metadata.get, _FIGURES))
        brief = judged.artifacts["report"][0].path
        whole = brief.with_name(HTML_NAME)
        found["report"] = str(whole if whole.exists() else brief)
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
        main(prog_name=os.environ.pop(PROGRAM_VARIABLE, "python -m pipelines"))
    except (InvalidInputError, VerificationError) as error:
        for problem in error.problems:
            click.echo(f"error: {problem}", err=True)
        sys.exit(error.exit_code)
    except QuantlibError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"error: {os_error_line(error)}", err=True)
        sys.exit(1)
