"""What is made of a service's status, its Deployment and its pods."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from quantlib.errors import InvalidInputError
from quantlib.promotion.api import ForbiddenError
from quantlib.promotion.kinds import KINDS
from quantlib.promotion.readiness import Readiness, look

READY = {"type": "Ready", "status": "True"}
NOT_LOOKED = Readiness("waiting", "its controller has not looked yet")
SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"


@dataclass
class Stub:
    """A service whose Deployments and pods are made up."""

    kind_name: str = "InferenceService"
    deployments: dict[str, dict[str, Any]] = field(default_factory=dict)
    found: list[dict[str, Any]] | InvalidInputError = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> Any:
        return KINDS[self.kind_name]

    def deployment(self, name: str) -> dict[str, Any] | None:
        return self.deployments.get(name)

    def pods(self, _: dict[str, Any]) -> list[dict[str, Any]]:
        if isinstance(self.found, InvalidInputError):
            raise self.found
        return self.found

    def log(self, pod: str, container: str, *, previous: bool) -> str:
        return self.logs.get(f"{pod}/{container}/{previous}", "")


def seen(document: dict[str, Any], stub: Stub | None = None, **options: Any) -> Readiness:
    stub = stub or Stub(document["kind"])
    found = look(stub, document, **options)  # type: ignore[arg-type]
    return Readiness(found.state, found.reason, found.certain)


def service(kind: str = "InferenceService", **status: Any) -> dict[str, Any]:
    metadata = {"name": "tiny", "generation": 3, "annotations": {"quantlib.io/promoted-at": "now"}}
    spec = {"predictor": {"model": {"storageUri": "s3://new/"}}}
    return {"kind": kind, "metadata": metadata, "spec": spec, "status": status}


def workload(uri: str = "s3://new/", at: str = "now", **status: Any) -> dict[str, Any]:
    """The Deployment that KServe makes of an InferenceService."""
    annotations = {SOURCE: uri, "quantlib.io/promoted-at": at, "team": "platform"}
    counts = {"observedGeneration": 9, "updatedReplicas": 2, "availableReplicas": 2, "replicas": 2}
    return {
        "metadata": {"name": "tiny-predictor", "generation": 9},
        "spec": {"replicas": 2, "template": {"metadata": {"annotations": annotations}}},
        "status": counts | status,
    }


def pod(**container: Any) -> dict[str, Any]:
    status = {"name": "kserve-container", "ready": False, "restartCount": 0, "state": {}}
    return {"metadata": {"name": "p"}, "status": {"containerStatuses": [status | container]}}


def test_a_status_of_an_older_generation() -> None:
    def told(**status: Any) -> Readiness:
        return seen(service("LLMInferenceService", conditions=[READY], **status))

    assert told(observedGeneration=2) == NOT_LOOKED
    assert told(observedGeneration=3) == Readiness("ready")
    assert told() == Readiness("ready", certain=False)


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ({}, "not Ready"),
        ({"type": "Ready", "status": "False", "reason": "Pending"}, "Pending"),
        ({"type": "Ready", "status": "Unknown", "message": "0 of\n1 pods"}, "0 of 1 pods"),
    ],
)
def test_a_condition_that_is_not_true(condition: dict[str, str], reason: str) -> None:
    conditions = [condition] if condition else []
    assert seen(service(conditions=conditions)).reason == reason


def test_a_model_that_does_not_load_under_knative_is_not_waited_for() -> None:
    model = {
        "transitionStatus": "BlockedByFailedLoad",
        "lastFailureInfo": {"message": "CUDA out of memory"},
    }
    # The revision before still answers, so the service is ready.
    status = {"conditions": [READY], "modelStatus": model, "deploymentMode": "Knative"}
    assert seen(service(**status)) == Readiness("failed", "CUDA out of memory")


def test_only_pods_of_this_promotion_count() -> None:
    document = service(conditions=[READY])

    def told(deployment: dict[str, Any]) -> Readiness:
        return seen(document, Stub(deployments={"tiny-predictor": deployment}))

    assert told(workload()) == Readiness("ready")
    assert told(workload(uri="s3://old/")) == NOT_LOOKED
    assert told(workload(at="before")) == NOT_LOOKED, "the same checkpoint, promoted before"
    assert told(workload(observedGeneration=8)) == NOT_LOOKED
    both = told(workload(updatedReplicas=1, availableReplicas=2))
    assert both.reason == "1 of 2 new pods are there, 1 of before, 2 available in all"
    none = workload(updatedReplicas=0, availableReplicas=0, replicas=0)
    none["spec"]["replicas"] = 0
    assert told(none).state == "waiting", "no pods answer nobody"


def test_the_canary_has_a_deployment_of_its_own() -> None:
    document = service(conditions=[])
    second = {"model": {"storageUri": "s3://canary/"}, "name": "canary"}
    document["spec"]["canary"] = [{"trafficPercent": 0, "predictor": second}]
    stub = Stub(deployments={"tiny-canary-predictor": workload("s3://canary/")})
    assert seen(document, stub, canary=True) == Readiness("ready"), "whatever the service says"
    stub = Stub(deployments={"tiny-canary-predictor": workload("s3://new/")})
    assert seen(document, stub, canary=True) == NOT_LOOKED


def test_a_deadline_of_a_deployment_ends_nothing() -> None:
    late = {"type": "Progressing", "reason": "ProgressDeadlineExceeded", "message": "too late"}
    slow = workload(updatedReplicas=1, availableReplicas=1, conditions=[late])
    document = service(conditions=[{"type": "Ready", "status": "False"}])
    assert seen(document, Stub(deployments={"tiny-predictor": slow})).state == "waiting"
    own = workload(updatedReplicas=1, conditions=[late]) | {"kind": "Deployment"}
    assert seen(own, Stub("Deployment")).state == "waiting"


CRASHED = {"terminated": {"exitCode": 1, "reason": "Error"}}
WAITING = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}


def told_of(*pods: dict[str, Any], logs: dict[str, str] | None = None) -> Readiness:
    rolling = workload(updatedReplicas=2, availableReplicas=0)
    stub = Stub(deployments={"tiny-predictor": rolling}, found=list(pods), logs=logs or {})
    return seen(service(conditions=[READY]), stub)


def test_what_ended_says_why() -> None:
    log = "INFO start\nValueError: no such scheme\nINFO bye\n\n"
    logs = {"p/kserve-container/True": log}
    crashed = pod(state=WAITING, lastState=CRASHED, restartCount=2)
    what = "kserve-container of pod p ended with 1, 2 restarts: ValueError: no such scheme"
    assert told_of(crashed, logs=logs) == Readiness("stuck", what)
    often = pod(state=WAITING, lastState=CRASHED, restartCount=3)
    assert told_of(often, logs=logs).state == "failed"
    assert told_of(pod(), often, logs=logs).state == "failed", "one is enough"
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    assert "ended with 137 (OOMKilled)" in told_of(pod(lastState=killed, restartCount=1)).reason


def test_what_verifies_a_copy_says_what_it_found() -> None:
    message = "error: model.safetensors: its sha256 is 1f2e, not the manifest's 9f0a"
    ended = {"terminated": {"exitCode": 1, "reason": "Error", "message": message}}
    init = {"name": "storage-initializer", "state": WAITING, "lastState": ended, "restartCount": 3}
    refused = {"metadata": {"name": "p"}, "status": {"initContainerStatuses": [init]}}
    assert told_of(refused).state == "failed"
    assert message in told_of(refused).reason


def test_what_cannot_start() -> None:
    pulling = {"waiting": {"reason": "ImagePullBackOff", "message": 'image "x" not found'}}
    what = 'kserve-container of pod p: ImagePullBackOff: image "x" not found'
    assert told_of(pod(state=pulling)) == Readiness("stuck", what)
    starting = {"waiting": {"reason": "ContainerCreating"}}
    assert told_of(pod(state=starting)).reason.startswith("2 of 2 new pods are there")


def test_no_room_is_waited_for() -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": "1 Insufficient gpu"}
    pending = {"metadata": {"name": "p"}, "status": {"conditions": [condition]}}
    assert told_of(pending) == Readiness("waiting", "pod p has no node: 1 Insufficient gpu")


def test_pods_that_may_not_be_read() -> None:
    rolling = workload(updatedReplicas=0)
    refused = ForbiddenError.one("it", "no permission to list pods")
    stub = Stub(deployments={"tiny-predictor": rolling}, found=refused)
    told = seen(service(conditions=[READY]), stub)
    assert told.state == "waiting"
    assert "no permission to list pods" in told.reason
