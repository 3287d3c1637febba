"""What a compiled pipeline asks of Kubernetes: the second document of the file.

(kubeflow/pipelines, kubernetes_platform/proto/kubernetes_executor_config.proto.) A run on one
machine needs none of it, and reads it all the same: a field that is not known here would be lost in
the translation to Argo, or unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines._fields import Fields


@dataclass(frozen=True)
class EnvironmentSource:
    """Variables from a secret or a config map.

    Attributes:
        name: Of the secret or config map.
        keys: Its keys, by the name of the variable.
        optional: Whether a step starts where it is missing.
    """

    name: str
    keys: Mapping[str, str]
    optional: bool


@dataclass(frozen=True)
class SecretVolume:
    """A secret whose values are files of the folder ``path``.

    Attributes:
        secret: Its name.
        optional: Whether a step starts where it is missing.
    """

    secret: str
    path: str
    optional: bool

    @property
    def name(self) -> str:
        """Of the volume."""
        return f"secret-{self.secret}"


@dataclass(frozen=True)
class EmptyDir:
    """A folder that lives as long as the pod; ``medium`` is ``Memory`` or empty for the disk."""

    name: str
    path: str
    medium: str
    size: str


@dataclass(frozen=True)
class EphemeralVolume:
    """A volume that is made for the pod and goes with it."""

    name: str
    path: str
    size: str
    access_modes: tuple[str, ...]
    storage_class: str


@dataclass(frozen=True)
class Toleration:
    """A taint of nodes that the pod may run on all the same."""

    key: str
    operator: str
    value: str
    effect: str


@dataclass(frozen=True)
class MatchExpression:
    """A requirement on a label of the node."""

    key: str
    operator: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class KubernetesConfig:
    """What one container asks of Kubernetes besides its resources.

    Attributes:
        timeout: Seconds that the pod may run; 0 for any number.
        affinity: Requirements on the node, all of which must hold.
        user: User and group ids; None for the image's own.
    """

    secrets: tuple[EnvironmentSource, ...] = ()
    config_maps: tuple[EnvironmentSource, ...] = ()
    secret_volumes: tuple[SecretVolume, ...] = ()
    empty_dirs: tuple[EmptyDir, ...] = ()
    ephemeral_volumes: tuple[EphemeralVolume, ...] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    affinity: tuple[MatchExpression, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    pull_policy: str = ""
    timeout: int = 0
    user: int | None = None
    group: int | None = None
    non_root: bool = False


def read_platform(document: Any, origin: str) -> dict[str, KubernetesConfig]:
    """The configuration of each executor, by its label.

    Raises:
        InvalidInputError: The document holds something that is not supported.
    """
    with (
        Fields(document, origin) as fields,
        fields.fields("platforms") as platforms,
        platforms.fields("kubernetes") as kubernetes,
        kubernetes.fields("deploymentSpec") as deployment,
    ):
        return {name: _read_config(entry) for name, entry in deployment.entries("executors")}


def _read_config(entry: Fields) -> KubernetesConfig:
    with entry:
        with entry.fields("nodeSelector") as selector:
            node_selector = selector.strings("labels")
        with entry.fields("podMetadata") as metadata:
            labels, annotations = metadata.strings("labels"), metadata.strings("annotations")
        with entry.fields("securityContext") as security:
            user, group = security.text("runAsUser", ""), security.text("runAsGroup", "")
            non_root = security.boolean("runAsNonRoot")
        return KubernetesConfig(
            secrets=tuple(_read_sources(entry, "secretAsEnv", "secretName", "secretKey")),
            config_maps=tuple(
                _read_sources(entry, "configMapAsEnv", "configMapName", "configMapKey")
            ),
            secret_volumes=tuple(_read_secret_volumes(entry)),
            empty_dirs=tuple(_read_empty_dirs(entry)),
            ephemeral_volumes=tuple(_read_ephemeral_volumes(entry)),
            node_selector=node_selector,
            tolerations=tuple(_read_tolerations(entry)),
            affinity=tuple(_read_affinity(entry)),
            labels=labels,
            annotations=annotations,
            pull_policy=entry.text("imagePullPolicy", ""),
            timeout=int(entry.text("activeDeadlineSeconds", "0")),
            user=int(user) if user else None,
            group=int(group) if group else None,
            non_root=non_root,
        )


def _read_sources(entry: Fields, kind: str, name: str, key: str) -> Iterator[EnvironmentSource]:
    for source in entry.elements(kind):
        with source:
            named = source.text(name)
            source.value(f"{name}Parameter")  # the same, in the form that could be a parameter
            keys = {}
            for pair in source.elements("keyToEnv"):
                with pair:
                    keys[pair.text("envVar")] = pair.text(key)
            yield EnvironmentSource(named, keys, source.boolean("optional"))


def _read_secret_volumes(entry: Fields) -> Iterator[SecretVolume]:
    for volume in entry.elements("secretAsVolume"):
        with volume:
            volume.value("secretNameParameter")  # the same, in the form that could be a parameter
            yield SecretVolume(
                volume.text("secretName"), volume.text("mountPath"), volume.boolean("optional")
            )


def _read_empty_dirs(entry: Fields) -> Iterator[EmptyDir]:
    for volume in entry.elements("emptyDirMounts"):
        with volume:
            yield EmptyDir(
                volume.text("volumeName"),
                volume.text("mountPath"),
                volume.text("medium", ""),
                volume.text("sizeLimit", ""),
            )


def _read_ephemeral_volumes(entry: Fields) -> Iterator[EphemeralVolume]:
    for volume in entry.elements("genericEphemeralVolume"):
        with volume:
            volume.boolean("defaultStorageClass")
            yield EphemeralVolume(
                volume.text("volumeName"),
                volume.text("mountPath"),
                volume.text("size"),
                volume.texts("accessModes"),
                volume.text("storageClassName", ""),
            )


def _read_tolerations(entry: Fields) -> Iterator[Toleration]:
    for toleration in entry.elements("tolerations"):
        with toleration:
            yield Toleration(
                toleration.text("key", ""),
                toleration.text("operator", ""),
                toleration.text("value", ""),
                toleration.text("effect", ""),
            )


def _read_affinity(entry: Fields) -> Iterator[MatchExpression]:
    for affinity in entry.elements("nodeAffinity"):
        with affinity:
            for expression in affinity.elements("matchExpressions"):
                with expression:
                    yield MatchExpression(
                        expression.text("key"),
                        expression.text("operator"),
                        expression.texts("values"),
                    )
