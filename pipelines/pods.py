"""What a step asks of Kubernetes, whichever engine starts its pod."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from components._images import IMAGE_VARIABLE
from pipelines.compiling import Compilation
from pipelines.graph import Output, Step
from pipelines.profiles import PLANNED_STEPS, Accelerator, Profile, Retries
from quantlib.publishing.keys import PASSWORD_VARIABLE
from quantlib.publishing.oci.auth import CONFIG_VARIABLE
from quantlib.publishing.signing import KEY_VARIABLE
from quantlib.runtime.code_version import CODE_VARIABLE, code_version
from quantlib.runtime.log import LOG_VARIABLE
from quantlib.telemetry.settings import (
    GATEWAY_VARIABLE,
    LINK_VARIABLE,
    MLFLOW_VARIABLE,
    MODEL_REGISTRY_VARIABLE,
    NOTIFY_PASSED_VARIABLE,
    NOTIFY_VARIABLE,
)

Quantity = str | Output
"""An amount, as the profile says it or as an output of the plan step."""

_USES_HUB = frozenset({"resolve", "fetch", "publish"})
_SIGNING = "/signing"
_LOOKS_AT_DESTINATION = frozenset({"resolve", "publish"})
_REGISTRY = "/registry"


@dataclass(frozen=True)
class Volume:
    """What is mounted into a pod.

    Attributes:
        secret: The secret whose keys are its files; empty for a new and empty volume.
        size: What it can hold.
        storage_class: Makes a volume for this pod; None: the node's own disk.
        medium: ``Memory`` for one that counts as memory.
    """

    name: str
    path: str
    secret: str = ""
    size: str = ""
    storage_class: str | None = None
    medium: str = ""


@dataclass(frozen=True)
class Pod:
    """A pod of one container, which runs as a user without rights.

    Attributes:
        secrets: Keys that become environment variables, by these, by the name of their secret.
            They are taken by reference, and where they are: a cluster whose pods have a role needs
            no keys.
        config_maps: The same of config maps.
        cpu: CPUs that it is promised, and ``cpu_limit`` those that it may take at most.
        memory: What it is promised and may take.
        accelerator: The devices that it asks for, as many as ``devices``.
        timeout: Seconds that an attempt may take.
        retries: When it is started again; None for never.
        user: Its user and group.
    """

    image: str
    user: int
    labels: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    config_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    volumes: tuple[Volume, ...] = ()
    cpu: Quantity | None = None
    cpu_limit: str | None = None
    memory: Quantity | None = None
    accelerator: Accelerator | None = None
    devices: Quantity = "0"
    timeout: int | None = None
    retries: Retries | None = None

    @property
    def planned(self) -> tuple[Output, ...]:
        """The outputs of the plan step that it asks by."""
        asked = (self.cpu, self.memory, self.devices)
        return tuple(quantity for quantity in asked if isinstance(quantity, Output))


def pod_of(step: Step, compilation: Compilation) -> Pod:
    """The pod of a step."""
    profile, image = compilation.profile, compilation.images.of(step.name)
    wanted = profile.step(step.name)
    accelerator = profile.accelerator if step.name in PLANNED_STEPS else None
    devices: Quantity = "0"
    if accelerator is not None:
        devices = _planned(step, "gpus") if wanted.gpus is None else str(wanted.gpus)
    # What runs there knows itself by its image: reports name it.
    environment = {CODE_VARIABLE: code_version(), IMAGE_VARIABLE: image, LOG_VARIABLE: profile.log}
    if profile.pushgateway:
        environment[GATEWAY_VARIABLE] = profile.pushgateway
    secrets = {profile.store_secret: _same("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    if step.name in _USES_HUB:
        secrets[profile.hub_secret] = _same("HF_TOKEN")
    if step.name == "publish" and profile.signing_secret is not None:
        environment[KEY_VARIABLE] = f"{_SIGNING}/key.pem"
        secrets[profile.signing_secret] = {PASSWORD_VARIABLE: "password"}
    if step.name == "publish":
        told = {MODEL_REGISTRY_VARIABLE: profile.model_registry, MLFLOW_VARIABLE: profile.mlflow}
        environment |= {variable: url for variable, url in told.items() if url}
    if step.name in _LOOKS_AT_DESTINATION and profile.registry_secret is not None:
        environment[CONFIG_VARIABLE] = _REGISTRY
    return Pod(
        image=image,
        user=profile.user,
        labels={
            "app.kubernetes.io/part-of": "quantlib",
            "quantlib.io/step": step.name,
            "quantlib.io/code": code_version().replace("+", "-"),
            **compilation.labels,
        },
        environment=environment,
        secrets=secrets,
        config_maps={profile.store_config_map: _same("AWS_ENDPOINT_URL_S3", "AWS_REGION")},
        volumes=_volumes(step.name, profile),
        cpu=wanted.cpu or _planned(step, "cpus"),
        cpu_limit=wanted.cpu_limit,
        memory=wanted.memory or _planned(step, "memory"),
        accelerator=accelerator,
        devices=devices,
        timeout=wanted.timeout,
        retries=profile.retries if step.retried and profile.retries.count else None,
    )


def telling(pod: Pod, profile: Profile) -> Pod:
    """A pod that also tells the profile's webhook how a run ended."""
    if profile.notify_secret is None:
        return pod
    said = {NOTIFY_PASSED_VARIABLE: "yes" if profile.notify_passed else "no"}
    if profile.run_link:
        said[LINK_VARIABLE] = profile.run_link
    return replace(
        pod,
        environment={**pod.environment, **said},
        secrets={**pod.secrets, profile.notify_secret: {NOTIFY_VARIABLE: "url"}},
    )


def _planned(step: Step, what: str) -> Output:
    return Output("plan", f"{step.name}_{what}")


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _volumes(step: str, profile: Profile) -> tuple[Volume, ...]:
    scratch = Volume(
        "scratch",
        "/scratch",
        size=profile.scratch.size,
        storage_class=profile.scratch.storage_class,
    )
    if step == "resolve":  # answers of the hub
        scratch = Volume("scratch", "/scratch", size="1Gi")
    volumes = [scratch]
    if step == "publish" and profile.signing_secret is not None:
        volumes.append(Volume("signing", _SIGNING, secret=profile.signing_secret))
    if step in _LOOKS_AT_DESTINATION and profile.registry_secret is not None:
        volumes.append(Volume("registry", _REGISTRY, secret=profile.registry_secret))
    if step in ("validate", "tasks"):
        volumes.append(Volume("shm", "/dev/shm", size=profile.shared_memory, medium="Memory"))
    return tuple(volumes)
