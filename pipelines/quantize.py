"""The quantization pipeline, as Kubeflow Pipelines takes it.

    fetch ── plan ── calibrate ── smooth ──┬─ quantize 0:8  ─┐
                                           ├─ quantize 8:16 ─┼─ merge ── validate ──┬─ publish
                                           └─ quantize 16:24 ┘                      └─ gate

Only receipts of a few KB travel between the steps; weights and activations stay in the store.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import yaml
from kfp import compiler, dsl, kubernetes
from kfp.dsl.pipeline_channel import PipelineChannel

from components._images import IMAGE_VARIABLE, Images
from components.calibrate.component import calibrate
from components.fetch.component import fetch
from components.gate.component import gate
from components.merge.component import merge
from components.plan.component import plan
from components.publish.component import publish
from components.quantize.component import quantize
from components.smooth.component import smooth
from components.validate.component import validate
from pipelines.cluster import PLANNED_STEPS, Accelerator, Cluster, Scratch
from quantlib.config import load_config
from quantlib.planning import HARDWARE
from quantlib.publishing.keys import PASSWORD_VARIABLE
from quantlib.publishing.signing import KEY_VARIABLE
from quantlib.recipe import SHIPPED_RECIPES
from quantlib.runtime.code_version import CODE_VARIABLE, code_version

# In one line: kfp writes a default into a comment of the compiled file without minding its line
# breaks, and the form of the Kubeflow UI has a single line for text, with an editor for JSON.
DEFAULT_RECIPE = json.dumps(load_config(SHIPPED_RECIPES / "gptq.yaml"))


DEVICES = ("auto", "cpu", "cuda")
LITERALS = {"device": DEVICES, "gpu": ("", *HARDWARE)}
"""Parameters that the run form shows as drop-downs: the SDK has no notation for them."""

SCRATCH, SIGNING = "/scratch", "/signing"
_USES_HUB = frozenset({"resolve", "fetch"})
_FINAL = frozenset({"gate"})
"""Steps that fail on purpose, which a retry would only delay."""

Planned = Mapping[str, PipelineChannel]
"""Outputs of the plan step by their names: ``quantize_memory``, ``validate_gpus``."""


def quantize_pipeline(
    cluster: Cluster, labels: Mapping[str, str], name: str = "quantize", *, on_cluster: bool = True
) -> dsl.base_component.BaseComponent:
    """The pipeline for a cluster.

    Args:
        cluster: What its steps ask of Kubernetes.
        labels: Further labels of their pods.
        name: Of the pipeline; one that is part of another must not be called like a step.
        on_cluster: Whether the profile's scratch disk is what the steps will have.
    """

    def step(
        task: dsl.PipelineTask, name: str, planned: Planned = MappingProxyType({})
    ) -> dsl.PipelineTask:
        return configure(task, name, cluster, labels, planned)

    @dsl.pipeline(name=name)
    def quantize_model(
        store: str,
        recipe: str = DEFAULT_RECIPE,
        source: str = "",
        num_ranges: int = 0,
        destination: str = "",
        device: str = "auto",
        gpu: str = cluster.gpu,
        parallel: int = cluster.parallel,
        job: str = "",
    ) -> None:
        """Quantizes a model for vLLM, proves it against the original and publishes it.

        Args:
            store: Address of the store that holds the bulk of every step: s3://bucket/prefix, or a
                folder that every step can reach.
            recipe: Recipe, as YAML or JSON text.
            source: A folder, a .gguf file, hf://org/name@revision, or s3://bucket/prefix. Empty:
                the recipe's model.
            num_ranges: Ranges of blocks that are quantized in parallel. 0: the recipe's. -1: as
                many as end soonest, by the plan.
            destination: Folder or s3://bucket/prefix to publish in. Empty: the recipe's.
            device: What the steps compute on: auto, cpu or cuda.
            gpu: What the plan reckons with, such as h100-80g; cpu for none.
            parallel: Ranges that the plan assumes to be quantized at the same time.
            job: Digest of the watcher's job that asked for it. Empty: none did.
        """
        fetched = step(fetch(recipe=recipe, source=source, store=store), "fetch")
        model = fetched.outputs["model"]
        planned = step(
            plan(
                recipe=recipe,
                num_ranges=num_ranges,
                gpu=gpu,
                parallel=parallel,
                node_gpus=cluster.node_gpus,
                scratch=cluster.scratch.size if on_cluster else "",
                store=store,
                model=model,
                texts=fetched.outputs["texts"],
            ),
            "plan",
        )
        calibrated = step(
            calibrate(
                recipe=recipe,
                store=store,
                device=device,
                model=model,
                plan=planned.outputs["plan"],
            ),
            "calibrate",
            planned.outputs,
        )
        calibration = calibrated.outputs["calibration"]
        smoothed = step(
            smooth(recipe=recipe, store=store, model=model, calibration=calibration), "smooth"
        )
        with dsl.ParallelFor(planned.outputs["ranges"], parallelism=cluster.parallel) as ranges:
            range_quantized = step(
                quantize(
                    recipe=recipe,
                    block_range=ranges,
                    store=store,
                    device=device,
                    memory=planned.outputs["quantize_memory"],
                    cpus=planned.outputs["quantize_cpus"],
                    gpus=planned.outputs["quantize_gpus"],
                    model=model,
                    calibration=calibration,
                    smoothing=smoothed.outputs["smoothing"],
                ),
                "quantize",
                planned.outputs,
            )
        merged = step(
            merge(
                recipe=recipe,
                store=store,
                model=model,
                quantized=dsl.Collected(range_quantized.outputs["quantized"]),
            ),
            "merge",
        )
        checkpoint = merged.outputs["checkpoint"]
        validated = step(
            validate(
                recipe=recipe,
                store=store,
                device=device,
                gpus=planned.outputs["validate_gpus"],
                model=model,
                plan=planned.outputs["plan"],
                checkpoint=checkpoint,
            ),
            "validate",
            planned.outputs,
        )
        with dsl.If(validated.outputs["verdict"] == "passed"):
            step(
                publish(
                    recipe=recipe,
                    destination=destination,
                    job=job,
                    store=store,
                    checkpoint=checkpoint,
                    validation=validated.outputs["validation"],
                ),
                "publish",
            )
        with dsl.Else():
            step(gate(reason=validated.outputs["reason"]), "gate")

    return quantize_model


def configure(
    task: dsl.PipelineTask,
    step: str,
    cluster: Cluster,
    labels: Mapping[str, str],
    planned: Planned = MappingProxyType({}),
) -> dsl.PipelineTask:
    """What a step asks of the cluster.

    Args:
        task: The step.
        step: Its name.
        cluster: The profile.
        labels: Further labels of the pod.
        planned: The plan's outputs, for a step that it computes the needs of.
    """
    # Kubeflow's cache goes by an image's name and by the ids of artifacts; neither says what is in
    # them, and the bulk that a cached receipt points to may be gone from the store. The ids are new
    # in every run, so even the light steps would hardly hit it. The store knows by digest what is
    # done already: a step that need not run again ends at once. And resolve is there to find out
    # what is at an address now, which its inputs do not say.
    task.set_caching_options(enable_caching=False)
    wanted = cluster.step(step)
    cpu = wanted.cpu or planned[f"{step}_cpus"]
    task.set_cpu_request(cpu).set_cpu_limit(cpu)
    memory = wanted.memory or planned[f"{step}_memory"]
    task.set_memory_request(memory).set_memory_limit(memory)
    task.set_env_variable(CODE_VARIABLE, code_version())
    kubernetes.set_timeout(task, wanted.timeout)
    retries = cluster.retries
    if retries.count and step not in _FINAL:
        # Both durations are given: the default of the longest counts from the first attempt's
        # start, so that a step that fails after an hour would not be retried.
        task.set_retry(
            retries.count,
            backoff_duration=f"{retries.delay}s",
            backoff_factor=retries.factor,
            backoff_max_duration=f"{retries.limit}s",
        )
    kubernetes.add_pod_label(task, "app.kubernetes.io/part-of", "quantlib")
    kubernetes.add_pod_label(task, "quantlib.io/step", step)
    # Kubeflow adds the run's id itself, as pipeline/runid.
    kubernetes.add_pod_label(task, "quantlib.io/code", code_version().replace("+", "-"))
    for label, value in labels.items():
        kubernetes.add_pod_label(task, label, value)
    kubernetes.set_security_context(
        task, run_as_user=cluster.user, run_as_group=cluster.user, run_as_non_root=True
    )
    _add_store_access(task, step, cluster)
    _add_scratch(task, step, cluster)
    if step == "publish" and cluster.signing_secret is not None:
        _add_signing_key(task, cluster.signing_secret)
    if step == "validate":
        kubernetes.empty_dir_mount(
            task, "shm", "/dev/shm", medium="Memory", size_limit=cluster.shared_memory
        )
    if step in PLANNED_STEPS and cluster.accelerator is not None:
        gpus = planned[f"{step}_gpus"] if wanted.gpus is None else wanted.gpus
        _add_accelerator(task, cluster.accelerator, gpus)
    return task


def _add_store_access(task: dsl.PipelineTask, step: str, cluster: Cluster) -> None:
    # By reference, and optional: a cluster whose pods have a role needs no keys.
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    places = ("AWS_ENDPOINT_URL_S3", "AWS_REGION")
    kubernetes.use_secret_as_env(
        task, cluster.store_secret, {key: key for key in keys}, optional=True
    )
    kubernetes.use_config_map_as_env(
        task, cluster.store_config_map, {key: key for key in places}, optional=True
    )
    if step in _USES_HUB:
        kubernetes.use_secret_as_env(
            task, cluster.hub_secret, {"HF_TOKEN": "HF_TOKEN"}, optional=True
        )


def _add_signing_key(task: dsl.PipelineTask, secret: str) -> None:
    kubernetes.use_secret_as_volume(task, secret, SIGNING)
    task.set_env_variable(KEY_VARIABLE, f"{SIGNING}/key.pem")
    kubernetes.use_secret_as_env(task, secret, {"password": PASSWORD_VARIABLE}, optional=True)


def _add_scratch(task: dsl.PipelineTask, step: str, cluster: Cluster) -> None:
    scratch = cluster.scratch if step != "resolve" else Scratch(size="1Gi")  # answers of the hub
    if scratch.storage_class is None:
        kubernetes.empty_dir_mount(task, "scratch", SCRATCH, size_limit=scratch.size)
    else:
        kubernetes.add_ephemeral_volume(
            task,
            volume_name="scratch",
            mount_path=SCRATCH,
            access_modes=["ReadWriteOnce"],
            size=scratch.size,
            storage_class_name=scratch.storage_class,
        )


def _add_accelerator(
    task: dsl.PipelineTask, accelerator: Accelerator, gpus: int | PipelineChannel
) -> None:
    task.set_accelerator_type(accelerator.type).set_accelerator_limit(gpus)
    for key, value in accelerator.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in accelerator.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))
    if accelerator.affinity:
        expressions = [expression.model_dump() for expression in accelerator.affinity]
        for expression in expressions:
            expression["values"] = list(expression["values"])
        kubernetes.add_node_affinity(task, match_expressions=expressions)


def compile_pipeline(
    path: Path, pipeline: dsl.base_component.BaseComponent, images: Images
) -> None:
    """Writes a compiled pipeline, creating the folder that it goes to.

    Args:
        path: The file to write.
        pipeline: :func:`quantize_pipeline`, or one with the same choices and steps that are ours.
        images: What the steps run in.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline, str(path))
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    parameters = documents[0]["root"]["inputDefinitions"]["parameters"]
    for name, literals in LITERALS.items():
        parameters[name]["literals"] = list(literals)
    for label, executor in documents[0]["deploymentSpec"]["executors"].items():
        container = executor["container"]
        container["image"] = images.of(label.removeprefix("exec-"))
        # What runs there knows itself by it: reports name the image.
        container["env"].append({"name": IMAGE_VARIABLE, "value": container["image"]})
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False), encoding="utf-8")
