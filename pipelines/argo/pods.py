"""A step's pod, as a template of Argo asks for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from hera.workflows import (
    Artifact,
    ConfigMapEnv,
    Container,
    EmptyDirVolume,
    Env,
    EphemeralVolume,
    Parameter,
    RetryStrategy,
    SecretEnv,
    SecretVolume,
    models,
)

from pipelines.argo.executor import OUTPUTS
from pipelines.graph import Output
from pipelines.pods import Pod, Quantity, Volume
from pipelines.profiles import Accelerator, Retries
from quantlib.errors import FINAL_EXIT_CODES
from quantlib.runtime.log import RUN_VARIABLE

_OWN_VOLUMES = (Volume("quantlib-outputs", OUTPUTS), Volume("quantlib-tmp", "/tmp"))
"""What every pod can write to; the rest of its image it cannot."""


def container_of(
    name: str,
    pod: Pod,
    argv: Sequence[str],
    inputs: Sequence[Parameter | Artifact] = (),
    outputs: Sequence[Parameter | Artifact] = (),
    tag_of: Callable[[Output], str] = str,
) -> Container:
    """The template of a pod, which fulfils the restricted Pod Security Standard.

    ``tag_of`` gives Argo's tag for an output of the plan, which the template takes as an input.
    """
    fixed, planned = _resources(pod, tag_of)
    # Resources are the only fields of a container that Argo cannot put a value into.
    patch = {"containers": [{"name": "main", "resources": planned}]}
    return Container(
        name=name,
        image=pod.image,
        command=list(argv[:1]),
        args=list(argv[1:]),
        inputs=list(inputs) or None,
        outputs=list(outputs) or None,
        labels={**pod.labels, "quantlib.io/run": "{{workflow.name}}"},
        env=_environment(pod) or None,
        volumes=[_volume(volume) for volume in (*pod.volumes, *_OWN_VOLUMES)],
        resources=models.ResourceRequirements.model_validate(fixed) if fixed else None,
        pod_spec_patch=json.dumps(patch) if planned else None,
        active_deadline_seconds=pod.timeout,
        retry_strategy=_retry_strategy(pod.retries) if pod.retries else None,
        security_context=models.SecurityContext(
            allow_privilege_escalation=False,
            capabilities=models.Capabilities(drop=["ALL"]),
            read_only_root_filesystem=True,
        ),
        pod_security_context=models.PodSecurityContext(
            run_as_non_root=True,
            run_as_user=pod.user,
            run_as_group=pod.user,
            # A new volume is root's.
            fs_group=pod.user if any(volume.storage_class for volume in pod.volumes) else None,
            seccomp_profile=models.SeccompProfile(type="RuntimeDefault"),
        ),
        **(_placement(pod.accelerator) if pod.accelerator else {}),
    )


def _resources(pod: Pod, tag_of: Callable[[Output], str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is known beforehand, and what Argo puts in at run time."""
    asked: list[tuple[str, str, Quantity | None]] = [
        ("requests", "cpu", pod.cpu),
        ("limits", "cpu", pod.cpu_limit),
        ("requests", "memory", pod.memory),
        ("limits", "memory", pod.memory),
    ]
    if pod.accelerator is not None:
        asked.append(("limits", pod.accelerator.type, pod.devices))
    fixed: dict[str, Any] = {}
    planned: dict[str, Any] = {}
    for kind, name, quantity in asked:
        if isinstance(quantity, Output):
            planned.setdefault(kind, {})[name] = tag_of(quantity)
        elif quantity is not None:
            fixed.setdefault(kind, {})[name] = quantity
    return fixed, planned


def _environment(pod: Pod) -> list[Env | SecretEnv | ConfigMapEnv]:
    return [
        Env(name=RUN_VARIABLE, value="{{workflow.name}}"),
        *(Env(name=variable, value=value) for variable, value in pod.environment.items()),
        *(
            SecretEnv(name=variable, secret_name=secret, secret_key=key, optional=True)
            for secret, keys in pod.secrets.items()
            for variable, key in keys.items()
        ),
        *(
            ConfigMapEnv(name=variable, config_map_name=name, config_map_key=key, optional=True)
            for name, keys in pod.config_maps.items()
            for variable, key in keys.items()
        ),
    ]


def _volume(volume: Volume) -> EmptyDirVolume | EphemeralVolume | SecretVolume:
    name, path = volume.name, volume.path
    if volume.secret:
        return SecretVolume(name=name, mount_path=path, secret_name=volume.secret, read_only=True)
    if volume.storage_class is None:
        size = models.Quantity(volume.size) if volume.size else None
        medium = volume.medium or None
        return EmptyDirVolume(name=name, mount_path=path, medium=medium, size_limit=size)
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": volume.size}},
        "storageClassName": volume.storage_class,
    }
    template = models.PersistentVolumeClaimTemplate.model_validate({"spec": claim})
    return EphemeralVolume(name=name, mount_path=path, volume_claim_template=template)


def _retry_strategy(retries: Retries) -> RetryStrategy:
    return RetryStrategy(
        limit=str(retries.count),
        retry_policy="Always",  # a lost node is an error to Argo, not a failure
        expression=f"asInt(lastRetry.exitCode) not in {list(FINAL_EXIT_CODES)}",
        backoff=models.Backoff.model_validate(
            {
                "duration": f"{retries.delay}s",
                "factor": str(retries.factor),
                "maxDuration": f"{retries.limit}s",
            }
        ),
    )


def _placement(accelerator: Accelerator) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "node_selector": dict(accelerator.node_selector) or None,
        "tolerations": [
            models.Toleration.model_validate(toleration.model_dump())
            for toleration in accelerator.tolerations
        ]
        or None,
    }
    if accelerator.affinity:
        expressions = [expression.model_dump() for expression in accelerator.affinity]
        terms = {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
        fields["affinity"] = models.Affinity.model_validate(
            {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
        )
    return fields
