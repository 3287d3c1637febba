"""``quantlib upload``."""

from __future__ import annotations

import click

from pipelines.commands.options import compilation_options, compiled_for, server_options
from pipelines.compiling import Compilation
from pipelines.kubeflow.client import Kubeflow, Server

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
@compilation_options
@server_options
def upload_command(name: str, version: str, compilation: Compilation, server: Server) -> None:
    """Compile the workflow and upload it, as a new version where it is there already."""
    kubeflow = Kubeflow(server)
    with compiled_for(kubeflow, compilation) as file:
        uploaded = kubeflow.upload(file, name or compilation.graph.name, version)
    click.echo(f"pipeline: {uploaded.pipeline}")
    there = "" if uploaded.is_new else ", already there"
    click.echo(f"version:  {uploaded.name} ({uploaded.version}){there}")
