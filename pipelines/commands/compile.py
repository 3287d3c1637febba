"""``quantlib compile``."""

from __future__ import annotations

import re
from dataclasses import astuple
from pathlib import Path

import click

from pipelines.argo.compiling import write_workflow_template
from pipelines.commands.options import compilation_options
from pipelines.compiling import Compilation
from pipelines.kubeflow.compiling import compile_pipeline, write_kubernetes_manifests
from quantlib.errors import naming

_EXAMPLES = """\b
Examples:
  quantlib compile
  quantlib compile --cluster local --output build/quantize.yaml
  quantlib compile --recipe team-w4.yaml --images-lock build/images.lock.json --kubernetes
  quantlib compile --target argo --output build/workflow.yaml
  quantlib compile --pipeline watch --output build/watch.yaml
"""


def _namespace(_: click.Context, __: click.Parameter, value: str) -> str:
    """A name as RFC 1123 has labels, which is what Kubernetes takes; or none."""
    if value and (len(value) > 63 or not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", value)):
        raise click.BadParameter(
            f"{value!r} is no namespace: at most 63 small letters, digits and dashes between them"
        )
    return value


@click.command("compile", epilog=_EXAMPLES)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("build/pipeline.yaml"),
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
@compilation_options
def compile_command(
    output: Path, target: str, kubernetes: bool, namespace: str, compilation: Compilation
) -> None:
    """Write the workflow in the form that Kubeflow Pipelines takes, or Argo Workflows."""
    if target == "argo" and kubernetes:
        raise click.UsageError("--kubernetes goes with --target kubeflow")
    with naming(output):
        if target == "argo":
            write_workflow_template(compilation, output, namespace=namespace)
        else:
            compile_pipeline(compilation, output)
    click.echo(output)
    if bare := [image for image in astuple(compilation.images) if "/" not in image]:
        click.echo(
            f"note: no registry is named for {', '.join(bare)}: a cluster has to hold them "
            "already, or give --images-lock, which `make push-images` writes",
            err=True,
        )
    if kubernetes:
        objects = output.with_suffix(".kubernetes.yaml")
        write_kubernetes_manifests(output, objects, namespace)
        click.echo(objects)
