"""What a container asks of Kubernetes, as fields of an Argo template."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pipelines._argo_values import given, input_tag, plain
from pipelines.ir import Container, Resources, Retry
from pipelines.placeholders import Placeholder, Template
from pipelines.platform_spec import (
    EmptyDir,
    EnvironmentSource,
    EphemeralVolume,
    KubernetesConfig,
    SecretVolume,
    Toleration,
)
from quantlib.errors import InvalidInputError

OUTPUTS = "/outputs"
_OWN_FOLDERS = {OUTPUTS: "quantlib-outputs", "/tmp": "quantlib-tmp"}
"""What every pod can write to, whatever its pipeline mounts, by path."""

Volume = EmptyDir | EphemeralVolume | SecretVolume

FINAL_EXIT_CODES = (2, 3)
"""Invalid input and a refused checkpoint (quantlib.errors): the next attempt would end the same."""


def container_fields(container: Container, where: str) -> dict[str, Any]:
    """Everything of a container but its command.

    With :func:`pod_fields`, it fulfils the restricted Pod Security Standard.

    Args:
        container: The container.
        where: What to call the task in error messages.

    Raises:
        InvalidInputError: It asks for something that has no counterpart in Argo.
    """
    config = container.kubernetes
    fixed, _ = _resources(container.resources, where)
    return {
        "image": plain(container.image, where),
        **given(
            imagePullPolicy=config.pull_policy,
            env=[
                *(
                    {"name": name, "value": plain(value, where)}
                    for name, value in container.environment.items()
                ),
                *_environment(config.secrets, "secretKeyRef"),
                *_environment(config.config_maps, "configMapKeyRef"),
            ],
            resources=fixed,
        ),
        "volumeMounts": [
            {
                "name": volume.name,
                "mountPath": volume.path,
                **given(readOnly=isinstance(volume, SecretVolume)),
            }
            for volume in _volumes(config)
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }


def pod_fields(container: Container, where: str) -> dict[str, Any]:
    """What the template says of the pod of a container.

    Raises:
        InvalidInputError: As :func:`container_fields`.
    """
    config = container.kubernetes
    _, computed = _resources(container.resources, where)
    return {
        "metadata": {
            "labels": {
                **{name: plain(value, where) for name, value in config.labels.items()},
                "quantlib.io/run": "{{workflow.name}}",
            },
            **given(
                annotations={
                    name: plain(value, where) for name, value in config.annotations.items()
                }
            ),
        },
        "securityContext": _pod_security(config, where),
        "volumes": [_volume(volume) for volume in _volumes(config)],
        **given(
            activeDeadlineSeconds=config.timeout,
            nodeSelector=dict(config.node_selector),
            tolerations=[_toleration(toleration) for toleration in config.tolerations],
            affinity=_affinity(config),
            # The only fields of a container that Argo cannot put a value into are its resources.
            podSpecPatch=computed
            and json.dumps({"containers": [{"name": "main", "resources": computed}]}),
        ),
    }


def retry_fields(retry: Retry, where: str) -> dict[str, Any]:
    """How a failed pod is started again.

    Raises:
        InvalidInputError: The factor of the delays is no whole number, which Argo's has to be.
    """
    if not retry.count:
        return {}
    if retry.factor != int(retry.factor):
        raise InvalidInputError.one(
            where, f"its retries wait {retry.factor} times longer each time", "give a whole number"
        )
    backoff = {"duration": f"{retry.delay:g}s", "factor": str(int(retry.factor))}
    if retry.limit:
        backoff["maxDuration"] = f"{retry.limit:g}s"
    return {
        "retryStrategy": {
            "limit": str(retry.count),
            "retryPolicy": "Always",  # a lost node is an error to Argo, not a failure
            "expression": f"asInt(lastRetry.exitCode) not in {list(FINAL_EXIT_CODES)}",
            "backoff": backoff,
        }
    }


def _resources(resources: Resources, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stands in the pipeline, and what Argo puts in at run time."""
    fixed: dict[str, dict[str, str]] = {}
    computed: dict[str, dict[str, str]] = {}

    def ask(kind: str, name: str, quantity: Template) -> None:
        if quantity:
            dynamic = any(isinstance(part, Placeholder) for part in quantity)
            into = computed if dynamic else fixed
            into.setdefault(kind, {})[name] = _quantity(quantity, where)

    ask("requests", "cpu", resources.cpu_request)
    ask("limits", "cpu", resources.cpu_limit)
    ask("requests", "memory", resources.memory_request)
    ask("limits", "memory", resources.memory_limit)
    match resources.accelerator_type:
        case ():
            if resources.accelerator_count:
                raise InvalidInputError.one(where, "asks for accelerators of no type")
        case (str(name),):
            if not resources.accelerator_count:
                raise InvalidInputError.one(where, f"asks for no number of {name}")
            ask("limits", plain(name, where), resources.accelerator_count)
        case _:
            what = "computes the type of its accelerator, which Argo cannot"
            raise InvalidInputError.one(where, what)
    return fixed, computed


def _quantity(quantity: Template, where: str) -> str:
    return "".join(
        input_tag(part.name) if isinstance(part, Placeholder) else plain(part, where)
        for part in quantity
    )


def _environment(sources: Iterable[EnvironmentSource], kind: str) -> list[dict[str, Any]]:
    return [
        {
            "name": variable,
            "valueFrom": {
                kind: {"name": source.name, "key": key, **given(optional=source.optional)}
            },
        }
        for source in sources
        for variable, key in source.keys.items()
    ]


def _volumes(config: KubernetesConfig) -> list[Volume]:
    volumes: list[Volume] = [
        *config.empty_dirs,
        *config.ephemeral_volumes,
        *config.secret_volumes,
    ]
    paths = {volume.path for volume in volumes}
    own = [EmptyDir(name, path, "", "") for path, name in _OWN_FOLDERS.items() if path not in paths]
    return volumes + own


def _volume(volume: Volume) -> dict[str, Any]:
    if isinstance(volume, SecretVolume):
        secret = {"secretName": volume.secret, **given(optional=volume.optional)}
        return {"name": volume.name, "secret": secret}
    if isinstance(volume, EmptyDir):
        return {
            "name": volume.name,
            "emptyDir": given(medium=volume.medium, sizeLimit=volume.size),
        }
    claim = {
        "accessModes": list(volume.access_modes),
        "resources": {"requests": {"storage": volume.size}},
        **given(storageClassName=volume.storage_class),
    }
    return {"name": volume.name, "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


def _pod_security(config: KubernetesConfig, where: str) -> dict[str, Any]:
    if config.user == 0:
        raise InvalidInputError.one(where, "runs as root", "give it another user")
    security: dict[str, Any] = {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if config.user is not None:
        security["runAsUser"] = config.user
    if config.group is not None:
        security["runAsGroup"] = config.group
    owner = config.user if config.group is None else config.group
    if config.ephemeral_volumes and owner is not None:
        security["fsGroup"] = owner  # a new volume is root's
    return security


def _toleration(toleration: Toleration) -> dict[str, str]:
    return given(
        key=toleration.key,
        operator=toleration.operator,
        value=toleration.value,
        effect=toleration.effect,
    )


def _affinity(config: KubernetesConfig) -> dict[str, Any]:
    if not config.affinity:
        return {}
    requirements = [
        {"key": each.key, "operator": each.operator, **given(values=list(each.values))}
        for each in config.affinity
    ]
    terms = {"nodeSelectorTerms": [{"matchExpressions": requirements}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
