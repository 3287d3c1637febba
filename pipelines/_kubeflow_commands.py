"""``python -m pipelines upload`` and ``schedule``."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import click

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
from pipelines.compiling import WATCH_NAME, CompileOptions, compile_to
from pipelines.kubeflow import Kubeflow, Server, check_cron
from quantlib.watching import destination_of

_UPLOAD_EXAMPLES = """\b
Examples:
  python -m pipelines upload --host http://127.0.0.1:8080
  python -m pipelines upload --host https://kubeflow.example --namespace quantlib \\
      --images-lock build/images.lock.json
  python -m pipelines upload --pipeline watch --host http://127.0.0.1:8080
"""
_SCHEDULE_EXAMPLES = """\b
Examples:
  python -m pipelines schedule llama-w4.yaml --store s3://bucket/store \\
      --publish-to s3://bucket/models --cron "0 0 3 * * *" \\
      --host http://127.0.0.1:8080 --namespace quantlib
"""


@click.command("upload", epilog=_UPLOAD_EXAMPLES)
@click.option("--name", default="", help="Of the pipeline.  [default: as the pipeline is called]")
@click.option("--version", default="", help="Of the version.  [default: the code's]")
@pipeline_option
@compile_options
@server_options
def upload_command(
    name: str, version: str, pipeline: str, options: CompileOptions, server: Server
) -> None:
    """Compiles the pipeline and uploads it, as a new version where it is there already."""
    kubeflow = Kubeflow(server)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / PIPELINE_NAME
        compile_to(file, options, pipeline)
        identity, uploaded = kubeflow.upload(file, name or pipeline, version)
    click.echo(f"pipeline: {identity}")
    click.echo(f"version:  {uploaded}")


@click.command("schedule", epilog=_SCHEDULE_EXAMPLES)
@click.argument("recipe")
@click.option("--cron", required=True, help="Second, minute, hour, day, month, day of week.")
@click.option("--name", default="", help="Of the schedule.  [default: watch-RECIPE]")
@job_options
@compile_options
@server_options
def schedule_command(
    recipe: str, cron: str, name: str, job: Job, options: CompileOptions, server: Server
) -> None:
    """Watches the model of RECIPE in Kubeflow: a file, or the name of a shipped one.

    Each run of the schedule resolves the model, and quantizes it where this release is not
    published yet. One run at a time; times that were missed are not made up for.
    """
    check_cron(cron)
    checked = checked_recipe(recipe, job.model)
    destination_of(checked, job.publish_to)
    parameters = run_parameters(checked, job)
    require_reachable(parameters)
    kubeflow = Kubeflow(server)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / PIPELINE_NAME
        compile_to(file, replace(options, recipe=checked), WATCH_NAME)
        named = name or f"{WATCH_NAME}-{Path(recipe).stem}"
        click.echo(kubeflow.schedule(file, parameters, named, cron))
