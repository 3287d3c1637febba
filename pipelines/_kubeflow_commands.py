"""``python -m pipelines upload`` and ``schedule``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from pipelines._options import (
    PIPELINE_NAME,
    checked_recipe,
    compile_options,
    job_options,
    require_reachable,
    run_parameters,
    server_options,
)
from pipelines.compiling import NAME, CompileOptions, compile_to
from pipelines.kubeflow import Kubeflow, Server, check_cron

_UPLOAD_EXAMPLES = """\b
Examples:
  python -m pipelines upload --host http://127.0.0.1:8080
  python -m pipelines upload --host https://kubeflow.example --namespace quantlib \\
      --images-lock build/images.lock.json
"""
_SCHEDULE_EXAMPLES = """\b
Examples:
  python -m pipelines schedule gptq --model hf://org/name --store s3://bucket/store \\
      --cron "0 0 3 * * *" --host http://127.0.0.1:8080 --namespace quantlib
"""


@click.command("upload", epilog=_UPLOAD_EXAMPLES)
@click.option("--name", default=NAME, show_default=True, help="Of the pipeline.")
@click.option("--version", default="", help="Of the version.  [default: the code's]")
@compile_options
@server_options
def upload_command(
    name: str,
    version: str,
    cluster: str,
    images_lock: Path | None,
    allow_floating: bool,
    **server: str,
) -> None:
    """Compiles the pipeline and uploads it, as a new version where it is there already."""
    kubeflow = Kubeflow(Server(**server))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / PIPELINE_NAME
        compile_to(file, CompileOptions(cluster, images_lock, allow_floating))
        pipeline, uploaded = kubeflow.upload(file, name, version)
    click.echo(f"pipeline: {pipeline}")
    click.echo(f"version:  {uploaded}")


@click.command("schedule", epilog=_SCHEDULE_EXAMPLES)
@click.argument("recipe")
@click.option("--cron", required=True, help="Second, minute, hour, day, month, day of week.")
@click.option("--name", default="", help="Of the schedule.  [default: quantize-RECIPE]")
@job_options
@compile_options
@server_options
def schedule_command(
    recipe: str,
    cron: str,
    name: str,
    model: str,
    store: str,
    num_ranges: int,
    publish_to: str,
    device: str,
    gpu: str | None,
    job: str,
    cluster: str,
    images_lock: Path | None,
    allow_floating: bool,
    **server: str,
) -> None:
    """Quantizes again and again in Kubeflow, by RECIPE: a file, or the name of a shipped one.

    One run at a time; times that were missed are not made up for. A run whose model, recipe and
    code are those of an earlier one finds its work in the store and ends soon.
    """
    check_cron(cron)
    checked = checked_recipe(recipe, model)
    parameters = run_parameters(checked, model, store, num_ranges, publish_to, device, gpu, job)
    require_reachable(parameters)
    kubeflow = Kubeflow(Server(**server))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / PIPELINE_NAME
        compile_to(file, CompileOptions(cluster, images_lock, allow_floating, checked))
        named = name or f"{NAME}-{Path(recipe).stem}"
        click.echo(kubeflow.schedule(file, parameters, named, cron))
