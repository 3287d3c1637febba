"""The pipeline of one look at a watched model, with the quantization pipeline in it.

    resolve ──┬─ needed: fetch ── plan ── … ── publish
              └─ up to date: nothing

A recurring run of it costs one small pod where there is nothing new.
"""

from collections.abc import Mapping

from kfp import dsl

from components._images import Images
from components.resolve.component import resolve
from pipelines.cluster import Cluster
from pipelines.quantize import configure, quantize_pipeline


def watch_pipeline(
    cluster: Cluster, labels: Mapping[str, str], images: Images
) -> dsl.base_component.BaseComponent:
    """The pipeline for a cluster.

    Args:
        cluster: What its steps ask of Kubernetes.
        labels: Further labels of their pods.
        images: What they run in, which is part of what a job is.
    """
    quantize_release = quantize_pipeline(cluster, labels, "quantize-release")

    @dsl.pipeline(name="watch")
    def watch_model(
        store: str,
        recipe: str,
        source: str = "",
        num_ranges: int = 0,
        destination: str = "",
        device: str = "auto",
        gpu: str = cluster.gpu,
        parallel: int = cluster.parallel,
    ) -> None:
        """Quantizes a model where the release that its address means now is not published yet.

        Args:
            store: Address of the store that holds the bulk of every step: s3://bucket/prefix, or a
                folder that every step can reach.
            recipe: Recipe, as YAML or JSON text.
            source: The model to watch: hf://org/name@branch, s3://bucket/prefix, a folder or a
                .gguf file. Empty: the recipe's model.
            num_ranges: Ranges of blocks that are quantized in parallel. 0: the recipe's. -1: as
                many as end soonest, by the plan.
            destination: Folder or s3://bucket/prefix to publish in. Empty: the recipe's.
            device: What the steps compute on: auto, cpu or cuda.
            gpu: What the plan reckons with, such as h100-80g; cpu for none.
            parallel: Ranges that the plan assumes to be quantized at the same time.
        """
        resolved = resolve(
            recipe=recipe,
            source=source,
            num_ranges=num_ranges,
            destination=destination,
            images=list(images.of_quantization),
        )
        configure(resolved, "resolve", cluster, labels)
        with dsl.If(resolved.outputs["needed"] == "yes"):
            quantize_release(
                store=store,
                recipe=recipe,
                source=resolved.outputs["release"],
                num_ranges=num_ranges,
                destination=destination,
                device=device,
                gpu=gpu,
                parallel=parallel,
                job=resolved.outputs["job"],
            )

    return watch_model
