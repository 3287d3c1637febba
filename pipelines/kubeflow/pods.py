"""A step's pod, as a task of Kubeflow asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kfp import dsl, kubernetes

from pipelines.graph import Output
from pipelines.pods import Pod, Quantity, Volume
from pipelines.profiles import Accelerator
from quantlib.runtime.log import RUN_VARIABLE


def configure(task: dsl.PipelineTask, pod: Pod, value_of: Callable[[Output], Any]) -> None:
    """Says what the pod of a task is like; ``value_of`` gives an output of an earlier step.

    Its image is named once the pipeline is compiled: kfp takes it from the component.
    """

    def known(quantity: Quantity) -> Any:
        return value_of(quantity) if isinstance(quantity, Output) else quantity

    # Kubeflow's cache goes by an image's name and by the ids of artifacts; neither says what is in
    # them, and the bulk that a cached receipt points to may be gone from the store. The ids are new
    # in every run, so even the light steps would hardly hit it. The store knows by digest what is
    # done already: a step that need not run again ends at once. And resolve is there to find out
    # what is at an address now, which its inputs do not say.
    task.set_caching_options(enable_caching=False)
    if pod.cpu is not None:
        task.set_cpu_request(known(pod.cpu))
    if pod.cpu_limit is not None:
        task.set_cpu_limit(pod.cpu_limit)
    if pod.memory is not None:
        task.set_memory_request(known(pod.memory)).set_memory_limit(known(pod.memory))
    if pod.timeout is not None:
        kubernetes.set_timeout(task, pod.timeout)
    if pod.retries is not None:
        # Both durations are given: the default of the longest counts from the first attempt's
        # start, so that a step that fails after an hour would not be retried.
        task.set_retry(
            pod.retries.count,
            backoff_duration=f"{pod.retries.delay}s",
            backoff_factor=pod.retries.factor,
            backoff_max_duration=f"{pod.retries.limit}s",
        )
    # Kubeflow adds the run's id itself, as pipeline/runid.
    for label, value in pod.labels.items():
        kubernetes.add_pod_label(task, label, value)
    kubernetes.set_security_context(
        task, run_as_user=pod.user, run_as_group=pod.user, run_as_non_root=True
    )
    kubernetes.use_field_path_as_env(task, RUN_VARIABLE, "metadata.labels['pipeline/runid']")
    for variable, value in pod.environment.items():
        task.set_env_variable(variable, value)
    for use, sources in (
        (kubernetes.use_secret_as_env, pod.secrets),
        (kubernetes.use_config_map_as_env, pod.config_maps),
    ):
        for name, variables in sources.items():
            keys = {key: variable for variable, key in variables.items()}
            use(task, name, keys, optional=True)
    for volume in pod.volumes:
        _mount(task, volume)
    if pod.accelerator is not None:
        _add_accelerator(task, pod.accelerator, known(pod.devices))


def _mount(task: dsl.PipelineTask, volume: Volume) -> None:
    if volume.secret:
        kubernetes.use_secret_as_volume(task, volume.secret, volume.path)
    elif volume.storage_class is None:
        kubernetes.empty_dir_mount(
            task, volume.name, volume.path, medium=volume.medium or None, size_limit=volume.size
        )
    else:
        kubernetes.add_ephemeral_volume(
            task,
            volume_name=volume.name,
            mount_path=volume.path,
            access_modes=["ReadWriteOnce"],
            size=volume.size,
            storage_class_name=volume.storage_class,
        )


def _add_accelerator(task: dsl.PipelineTask, accelerator: Accelerator, devices: Any) -> None:
    task.set_accelerator_type(accelerator.type).set_accelerator_limit(devices)
    for key, value in accelerator.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in accelerator.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))
    if accelerator.affinity:
        expressions = [expression.model_dump() for expression in accelerator.affinity]
        for expression in expressions:
            expression["values"] = list(expression["values"])
        kubernetes.add_node_affinity(task, match_expressions=expressions)
