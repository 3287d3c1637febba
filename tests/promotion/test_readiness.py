"""What the status of a service says."""

from typing import Any

import pytest

from quantlib.promotion.readiness import Readiness, readiness

READY = {"type": "Ready", "status": "True"}


def service(kind: str = "InferenceService", **status: Any) -> dict[str, Any]:
    metadata = {"name": "tiny", "generation": 3}
    return {"kind": kind, "metadata": metadata, "spec": {"replicas": 2}, "status": status}


def test_a_status_of_an_older_generation() -> None:
    def seen(**status: Any) -> Readiness:
        return readiness(service("LLMInferenceService", conditions=[READY], **status))

    assert seen(observedGeneration=2) == Readiness("waiting", "its controller has not looked yet")
    assert seen(observedGeneration=3) == Readiness("ready")
    assert seen() == Readiness("ready", certain=False)


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ({}, "not Ready"),
        ({"type": "Ready", "status": "False", "reason": "Pending"}, "Pending"),
        ({"type": "Ready", "status": "Unknown", "message": "0 of 1 pods"}, "0 of 1 pods"),
    ],
)
def test_a_condition_that_is_not_true(condition: dict[str, str], reason: str) -> None:
    conditions = [condition] if condition else []
    assert readiness(service(conditions=conditions)) == Readiness("waiting", reason)


def test_a_model_that_does_not_load_is_not_waited_for() -> None:
    model = {
        "transitionStatus": "BlockedByFailedLoad",
        "lastFailureInfo": {"message": "CUDA out of memory"},
    }
    # The revision before still answers, so the service is ready.
    seen = readiness(service(observedGeneration=3, conditions=[READY], modelStatus=model))
    assert seen == Readiness("failed", "CUDA out of memory")


def test_a_canary_has_to_be_ready_too() -> None:
    canaries = [{"name": "canary", "ready": False}, {"name": "other", "ready": True}]
    document = service(observedGeneration=3, conditions=[READY], canaryStatuses=canaries)
    assert readiness(document, "canary").state == "waiting"
    assert readiness(document, "other").state == "ready"


def test_replicas_of_a_deployment() -> None:
    counts = {"observedGeneration": 3, "updatedReplicas": 2, "availableReplicas": 1, "replicas": 3}
    seen = readiness(service("Deployment", **counts))
    assert seen == Readiness("waiting", "2 of 2 replicas are new, 1 ready")
    counts |= {"availableReplicas": 2, "replicas": 2}
    assert readiness(service("Deployment", **counts)) == Readiness("ready")
    late = {"type": "Progressing", "reason": "ProgressDeadlineExceeded", "message": "too late"}
    seen = readiness(service("Deployment", **counts, conditions=[late]))
    assert seen == Readiness("failed", "too late")


def predictor(uri: str | None, **status: Any) -> dict[str, Any]:
    """The Deployment that KServe makes of an InferenceService."""
    key = "internal.serving.kserve.io/storage-initializer-sourceuri"
    metadata = {"annotations": {key: uri}} if uri else {}
    counts = {"observedGeneration": 9, "updatedReplicas": 1, "availableReplicas": 1, "replicas": 1}
    return {
        "metadata": {"generation": 9},
        "spec": {"replicas": 1, "template": {"metadata": metadata}},
        "status": counts | status,
    }


def test_the_pods_of_an_inference_service() -> None:
    document = service(observedGeneration=1, conditions=[READY])
    document["spec"] = {"predictor": {"model": {"storageUri": "s3://new/"}}}
    assert readiness(document, None, predictor("s3://new/")) == Readiness("ready")
    assert readiness(document, None, predictor(None)) == Readiness("ready", certain=False)
    assert readiness(document) == Readiness("ready", certain=False)
    not_looked = Readiness("waiting", "its controller has not looked yet")
    assert readiness(document, None, predictor("s3://old/")) == not_looked
    assert readiness(document, None, predictor("s3://new/", observedGeneration=8)) == not_looked
    both = predictor("s3://new/", replicas=2)
    assert readiness(document, None, both).reason == "1 of 1 replicas are new, 1 ready"
    document["spec"]["canary"] = [{"trafficPercent": 5, "predictor": {"name": "canary"}}]
    for percent, seen in ((0, not_looked), (5, Readiness("ready"))):
        told = {"name": "canary", "ready": True, "trafficPercent": percent}
        document["status"]["canaryStatuses"] = [told]
        assert readiness(document, "canary", predictor("s3://new/")) == seen
