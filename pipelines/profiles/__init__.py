"""What the cluster is like that a workflow is compiled for.

A profile is a YAML file; ``gpu`` and ``local`` ship. Nothing in it decides what a
checkpoint will be: that is the recipe's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantlib.config import load_config, named_file
from quantlib.errors import InvalidInputError, Problem
from quantlib.runtime.urls import RunLink, Url

SHIPPED = Path(__file__).parent
Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
"""A quantity of Kubernetes: ``500m``, ``8Gi``."""


class Part(BaseModel):
    """A closed, immutable part of a profile."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Toleration(Part):
    """A taint of GPU nodes that steps on GPUs tolerate."""

    key: str
    operator: Literal["Equal", "Exists"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class MatchExpression(Part):
    """A requirement on a label of the nodes that steps on GPUs run on."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = "In"
    values: tuple[str, ...] = ()


class Accelerator(Part):
    """The devices that calibrate, quantize and validate ask for."""

    type: Annotated[str, Field(description="Name of the extended resource.")] = "nvidia.com/gpu"
    node_selector: dict[str, str] = {}
    affinity: tuple[MatchExpression, ...] = ()
    tolerations: tuple[Toleration, ...] = (Toleration(key="nvidia.com/gpu"),)


class Scratch(Part):
    """Where steps keep files in the making."""

    size: Quantity = "100Gi"
    storage_class: Annotated[
        str | None,
        Field(description="Makes a volume for each pod. None: the node's own disk (emptyDir)."),
    ] = None


class Retries(Part):
    """When a step that failed is started again.

    Kubeflow counts ``limit`` from the start of the first attempt: a limit shorter than a step takes
    means that the step is never retried.
    """

    count: Annotated[int, Field(ge=0, le=10)] = 3
    delay: Annotated[int, Field(ge=0, description="Seconds before the second attempt.")] = 30
    factor: Annotated[
        int, Field(ge=1, description="How many times longer each wait is: a whole number for Argo.")
    ] = 2
    limit: Annotated[int, Field(ge=0, description="Seconds.")] = 7 * 24 * 3600


class StepResources(Part):
    """What one step asks for.

    None stands for what the plan step computes from model, recipe and hardware, for the steps in
    ``PLANNED_STEPS``.
    """

    cpu: Annotated[Quantity | None, Field(description="CPUs that it is promised.")] = "2"
    cpu_limit: Annotated[
        Quantity | None,
        Field(description="CPUs that it may take at most. None: all that are free."),
    ] = None
    memory: Quantity | None = "4Gi"
    gpus: Annotated[
        int | None, Field(ge=0, description="Devices, where the profile has an accelerator.")
    ] = None
    timeout: Annotated[int, Field(ge=60, description="Seconds that an attempt may take.")] = 3600


PLANNED_STEPS = ("calibrate", "measure", "quantize", "validate", "tasks")
"""The steps that compute on the model's weights."""

_HOURS = 3600


def _default_steps() -> dict[str, StepResources]:
    return {
        "resolve": StepResources(cpu="500m", memory="1Gi"),
        "fetch": StepResources(memory="8Gi", timeout=12 * _HOURS),
        "plan": StepResources(),
        "calibrate": StepResources(cpu=None, memory=None, timeout=24 * _HOURS),
        "measure": StepResources(cpu=None, memory=None, timeout=24 * _HOURS),
        "choose": StepResources(),
        "smooth": StepResources(),
        "quantize": StepResources(cpu=None, memory=None, timeout=48 * _HOURS),
        "merge": StepResources(timeout=6 * _HOURS),
        "validate": StepResources(cpu=None, memory=None, timeout=12 * _HOURS),
        "tasks": StepResources(cpu=None, memory=None, timeout=24 * _HOURS),
        "gate": StepResources(cpu="500m", memory="1Gi"),
        "publish": StepResources(timeout=6 * _HOURS),
    }


class Profile(Part):
    """What a cluster is like."""

    accelerator: Annotated[
        Accelerator | None, Field(description="None: everything is computed on CPUs.")
    ] = Accelerator()
    gpu: Annotated[
        str, Field(description="What the plan step reckons with, as `quantlib plan --gpu`.")
    ] = "h100-80g"
    node_gpus: Annotated[
        int, Field(ge=1, description="GPUs of one node, over which validate can spread a model.")
    ] = 8
    steps: dict[str, StepResources] = {}
    scratch: Scratch = Scratch()
    shared_memory: Annotated[
        Quantity, Field(description="Size of /dev/shm, which vLLM uses; counts as memory.")
    ] = "8Gi"
    parallel: Annotated[
        int, Field(ge=1, le=64, description="Ranges that are quantized at the same time.")
    ] = 8
    retries: Retries = Retries()
    store: Annotated[
        str, Field(description="Where runs keep their work, unless they say: s3://bucket/prefix.")
    ] = ""
    publish_to: Annotated[
        str, Field(description="Where runs publish, unless they say. Empty: as the recipe says.")
    ] = ""
    store_secret: Annotated[
        str, Field(description="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")
    ] = "quantlib-s3"
    store_config_map: Annotated[
        str, Field(description="Config map with AWS_ENDPOINT_URL_S3 and AWS_REGION.")
    ] = "quantlib-s3"
    hub_secret: Annotated[str, Field(description="Secret with HF_TOKEN.")] = "quantlib-hub"
    signing_secret: Annotated[
        str | None,
        Field(description="Secret with key.pem, which publish signs with, and maybe password."),
    ] = None
    log: Annotated[
        Literal["plain", "json"], Field(description="What a line of a step's log is.")
    ] = "plain"
    registry_secret: Annotated[
        str | None,
        Field(description="Secret with config.json of docker, which publish pushes images with."),
    ] = None
    model_registry: Annotated[
        Url, Field(description="Kubeflow's Model Registry, which publish tells of a checkpoint.")
    ] = ""
    mlflow: Annotated[Url, Field(description="MLflow server, which publish tells as well.")] = ""
    pushgateway: Annotated[
        Url, Field(description="Pushgateway of Prometheus that steps push their figures to.")
    ] = ""
    notify_secret: Annotated[
        str | None,
        Field(description="Secret with url, a webhook that is told how runs end. None: nobody is."),
    ] = None
    notify_passed: Annotated[
        bool, Field(description="Whether it is told of runs that passed too.")
    ] = False
    run_link: Annotated[
        RunLink, Field(description="Address of a run's page, with {run} in the place of its id.")
    ] = ""
    user: Annotated[int, Field(ge=1, description="User and group id of the steps.")] = 10001

    def step(self, name: str) -> StepResources:
        """What a step asks for: the profile's word, else the default for this step."""
        given = self.steps.get(name, StepResources())
        said = {field: getattr(given, field) for field in given.model_fields_set}
        return _default_steps()[name].model_copy(update=said)


def load_profile(name: str) -> Profile:
    """Reads a profile: a file, or the name of one that ships (``gpu``, ``local``).

    Raises:
        InvalidInputError: With one problem per fault of the file.
    """
    path = named_file(name, SHIPPED, "profile")
    data: dict[str, Any] = load_config(path)
    try:
        profile = Profile.model_validate(data)
    except ValidationError as error:
        raise InvalidInputError(
            Problem(f"{path}: {'.'.join(map(str, fault['loc']))}", fault["msg"])
            for fault in error.errors()
        ) from None
    if problems := _step_problems(profile, path):
        raise InvalidInputError(problems)
    return profile


def _step_problems(profile: Profile, path: Path) -> list[Problem]:
    problems = []
    for step in profile.steps:
        if step not in _default_steps():
            problems.append(Problem(f"{path}: steps.{step}", "there is no such step"))
        elif step not in PLANNED_STEPS:
            problems += [
                Problem(f"{path}: steps.{step}.{name}", "is missing: the plan does not compute it")
                for name in ("cpu", "memory")
                if getattr(profile.step(step), name) is None
            ]
    return problems
