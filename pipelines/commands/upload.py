"""``quantlib upload``."""

from __future__ import annotations

from dataclasses import replace

import click

from pipelines.commands.options import (
    compile_options,
    own_recipes,
    own_recipes_option,
    pipeline_option,
    server_options,
)
from pipelines.compiling import CompileOptions, prepare
from pipelines.graph import Graph
from pipelines.kubeflow.client import Kubeflow, Server
from pipelines.kubeflow.compiling import compiled

_EXAMPLES = """\b
Examples:
  quantlib upload --host http://127.0.0.1:8080
  quantlib upload --host https://kubeflow.example --namespace quantlib \\
      --images-lock build/images.lock.json
  quantlib upload --pipeline watch --host http://127.0.0.1:8080
"""


@click.command("upload", epilog=_EXAMPLES)
@click.option("--name", default="", help="Of the pipeline.  [default: as the pipeline is called]")
@click.option("--version", default="", help="Of the version.  [default: by code and content]")
@own_recipes_option
@pipeline_option
@compile_options
@server_options
def upload_command(
    name: str,
    version: str,
    recipes: tuple[str, ...],
    graph: Graph,
    options: CompileOptions,
    server: Server,
) -> None:
    """Compile the workflow and upload it, as a new version where it is there already."""
    compilation = prepare(graph, replace(options, recipes=own_recipes(recipes)))
    kubeflow = Kubeflow(server)
    with compiled(compilation) as file:
        uploaded = kubeflow.upload(file, name or graph.name, version)
        note = kubeflow.note_on_retries(file)
    click.echo(f"pipeline: {uploaded.pipeline}")
    there = "" if uploaded.is_new else ", already there"
    click.echo(f"version:  {uploaded.name} ({uploaded.version}){there}")
    if note:
        click.echo(f"note: {note}", err=True)
