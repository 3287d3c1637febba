"""``quantlib schedule``."""

from __future__ import annotations

from dataclasses import replace

import click

from pipelines.commands.options import (
    Job,
    cluster_options,
    cluster_settings,
    compiled_for,
    job_options,
    server_options,
)
from pipelines.compiling import CompileOptions, graph_of, prepare
from pipelines.kubeflow.client import Kubeflow, Server, check_cron
from quantlib.watching.jobs import destination_of

_EXAMPLES = """\b
Examples:
  quantlib schedule --recipe llama-w4.yaml --store s3://bucket/store \\
      --publish-to s3://bucket/models --cron "0 0 3 * * *" \\
      --host http://127.0.0.1:8080 --namespace quantlib
"""


@click.command("schedule", epilog=_EXAMPLES)
@click.option("--cron", required=True, help="Second, minute, hour, day, month, day of week.")
@click.option("--name", default="", help="Of the schedule.  [default: watch-RECIPE]")
@job_options
@cluster_options
@server_options
def schedule_command(
    cron: str, name: str, job: Job, options: CompileOptions, server: Server
) -> None:
    """Watch a model in Kubeflow, and quantize its releases.

    Each run of the schedule resolves the model, and quantizes it where this release is not
    published yet. One run at a time; times that were missed are not made up for.
    """
    check_cron(cron)
    recipe = job.checked_recipe()
    graph = graph_of(recipe, watched=True)
    compilation = prepare(graph, replace(options, recipes={job.name: recipe}))
    settings = cluster_settings(job, recipe, compilation)
    destination_of(recipe, settings["publish_to"])
    kubeflow = Kubeflow(server)
    with compiled_for(kubeflow, compilation) as file:
        click.echo(kubeflow.schedule(file, settings, name or f"{graph.name}-{job.name}", cron))
