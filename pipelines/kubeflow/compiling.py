"""A workflow in the form that Kubeflow Pipelines takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from pipelines.compiling import Compilation
from quantlib.runtime.code_version import code_version
from quantlib.runtime.distribution import needing


def compile_pipeline(compilation: Compilation, path: Path) -> None:
    """Writes the compiled pipeline, creating the folder that it goes to.

    Raises:
        QuantlibError: kfp is not installed.
    """
    with needing("pipelines", "kfp"):
        from kfp import compiler

        from pipelines.kubeflow.pipeline import pipeline_of
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline_of(compilation), str(path))
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    specification = documents[0]
    parameters = specification["root"]["inputDefinitions"]["parameters"]
    for setting in compilation.settings:
        if setting.choices:  # drop-downs of the form, which the SDK has no notation for
            parameters[setting.name]["literals"] = list(setting.choices)
    for label, executor in specification["deploymentSpec"]["executors"].items():
        executor["container"]["image"] = compilation.images.of(label.removeprefix("exec-"))
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False), encoding="utf-8")


@contextmanager
def compiled(compilation: Compilation) -> Iterator[Path]:
    """The compiled pipeline in a file that is gone afterwards."""
    with TemporaryDirectory(prefix="quantlib-compile-") as folder:
        file = Path(folder) / f"{compilation.graph.name}.yaml"
        compile_pipeline(compilation, file)
        yield file


def write_kubernetes_manifests(compiled: Path, output: Path, namespace: str) -> None:
    """Writes a compiled pipeline as the objects of Kubeflow's Kubernetes API.

    (kubeflow/pipelines, backend/src/crd: pipelines.kubeflow.org/v2beta1, Pipeline and
    PipelineVersion.)
    """
    specification, platform = yaml.safe_load_all(compiled.read_text(encoding="utf-8"))
    name, description = (specification["pipelineInfo"][key] for key in ("name", "description"))
    version = f"{name}-{code_version().replace('+', '-')}"
    of_version = {
        "pipelineName": name,
        "displayName": version,
        "pipelineSpec": specification,
        "platformSpec": platform,
    }
    objects = [
        {
            "apiVersion": "pipelines.kubeflow.org/v2beta1",
            "kind": kind,
            "metadata": {"name": called, "namespace": namespace},
            "spec": spec,
        }
        for kind, called, spec in (
            ("Pipeline", name, {"displayName": name, "description": description}),
            ("PipelineVersion", version, of_version),
        )
    ]
    output.write_text(yaml.safe_dump_all(objects, sort_keys=False), encoding="utf-8")
