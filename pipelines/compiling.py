"""From the pipeline's Python to the file that an engine takes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components._images import Images, is_floating, named_images, read_lock
from pipelines.cluster import load_cluster
from pipelines.lint import launcher_problems
from pipelines.reader import load_pipeline
from quantlib.errors import InvalidInputError, Problem, QuantlibError
from quantlib.recipe import Recipe
from quantlib.runtime.code_version import code_version
from quantlib.runtime.distribution import pip_install

NAME = "quantize"
WATCH_NAME = "watch"
PIPELINES = (NAME, WATCH_NAME)
"""Names of the pipelines: the quantization, and that of releases, which has the former in it."""


@dataclass(frozen=True)
class CompileOptions:
    """How a pipeline is compiled.

    Attributes:
        cluster: A profile: a file, or the name of one that ships.
        images_lock: The lock file of the images; None for their names.
        allow_floating: Whether images may be named by a tag that can move.
        recipe: What the pipeline is compiled to run once; None where each run brings its own.
    """

    cluster: str = "gpu"
    images_lock: Path | None = None
    allow_floating: bool = False
    recipe: Recipe | None = None

    def labels(self) -> dict[str, str]:
        """Labels of the pods that tell runs apart; a label's value has room for 63 characters."""
        if self.recipe is None:
            return {}
        return {"quantlib.io/recipe": self.recipe.digest().removeprefix("sha256:")[:12]}

    def images(self) -> Images:
        """The images to run the steps in.

        Raises:
            InvalidInputError: One of them is named by a tag that can move.
        """
        images = read_lock(self.images_lock) if self.images_lock else named_images()
        floating = [image for image in dataclasses.astuple(images) if is_floating(image)]
        if floating and not self.allow_floating:
            raise InvalidInputError(
                Problem(
                    f"image {image}",
                    "has a tag that can move, so a run cannot be traced to what it ran",
                    "name it by digest, version or revision (--images-lock), or give "
                    "--allow-floating",
                )
                for image in floating
            )
        return images


def compile_to(
    file: Path, options: CompileOptions, pipeline: str = NAME, *, on_cluster: bool = True
) -> None:
    """Compiles a pipeline.

    Args:
        file: The file to write.
        options: How.
        pipeline: One of ``PIPELINES``.
        on_cluster: Whether a cluster will run it, where the profile's limits hold.

    Raises:
        InvalidInputError: The options are wrong; nothing was written.
        QuantlibError: kfp is not installed.
    """
    images, cluster = options.images(), load_cluster(options.cluster)
    try:
        from pipelines.quantize import compile_pipeline, quantize_pipeline
        from pipelines.watch_pipeline import watch_pipeline
    except ModuleNotFoundError as error:
        if error.name != "kfp":
            raise
        raise QuantlibError(f"kfp is not installed; {pip_install('pipelines')}") from None
    labels = options.labels()
    if pipeline == NAME:
        built = quantize_pipeline(cluster, labels, on_cluster=on_cluster)
    else:
        built = watch_pipeline(cluster, labels, images)
    compile_pipeline(file, built, images)
    if problems := launcher_problems(load_pipeline(file), str(file)):
        raise InvalidInputError(problems)


def write_kubernetes_manifests(compiled: Path, output: Path, namespace: str) -> None:
    """Writes a compiled pipeline as the objects of Kubeflow's Kubernetes API.

    (kubeflow/pipelines, backend/src/crd: pipelines.kubeflow.org/v2beta1, Pipeline and
    PipelineVersion.)

    Args:
        compiled: The compiled pipeline.
        output: The file to write.
        namespace: Where the objects go.
    """
    documents = list(yaml.safe_load_all(compiled.read_text(encoding="utf-8")))
    info = documents[0]["pipelineInfo"]
    pipeline = info["name"]
    version = f"{pipeline}-{code_version().replace('+', '-')}"

    def named(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        return {
            "apiVersion": "pipelines.kubeflow.org/v2beta1",
            "kind": kind,
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        }

    version_spec: dict[str, Any] = {
        "pipelineName": pipeline,
        "displayName": version,
        "pipelineSpec": documents[0],
    }
    if len(documents) > 1:
        version_spec["platformSpec"] = documents[1]
    described = {"displayName": pipeline, "description": info["description"]}
    objects = [
        named("Pipeline", pipeline, described),
        named("PipelineVersion", version, version_spec),
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(yaml.safe_dump_all(objects, sort_keys=False), encoding="utf-8")
