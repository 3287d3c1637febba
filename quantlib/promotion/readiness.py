"""Whether the pods that were last asked for answer, and no others.

A service in Standard mode stays Ready while pods of before are: what tells is the Deployment that
KServe makes of it, whose pods carry the service's own annotations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quantlib.promotion.cluster import Service
from quantlib.promotion.kinds import Document
from quantlib.promotion.pods import one_line, trouble_of
from quantlib.promotion.rollout import CANARY, deployment_mode, workload_name
from quantlib.promotion.state import PREFIX

SETTLE_SECONDS = 30.0
"""Where a status does not say which generation it is of, it has to stay ready for so long."""

_NOT_LOOKED = "its controller has not looked yet"
_SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"


@dataclass(frozen=True)
class Readiness:
    """How a service fares.

    Attributes:
        state: ``failed`` is what waiting does not change; ``stuck`` what it hardly changes.
        reason: Why it is not ready, in one line.
        certain: Whether what was seen is known to be of the latest generation.
    """

    state: Literal["ready", "waiting", "stuck", "failed"]
    reason: str = ""
    certain: bool = True


def look(service: Service, document: Document, *, canary: bool = False) -> Readiness:
    """Looks at the pods that a service was last asked for.

    Args:
        service: The service.
        document: The service as it was just read.
        canary: Whether at the canary's pods.
    """
    if service.kind.name == "Deployment":
        return _rolled_out(service, document)
    name = workload_name(document, canary=canary)
    workload = None if name is None else service.deployment(name)
    if workload is None:
        return _by_status(document, canary=canary)
    if not _made_of(document, workload, canary=canary):
        return Readiness("waiting", _NOT_LOOKED)
    seen = _rolled_out(service, workload)
    if seen.state != "ready" or canary:
        return seen
    told = _by_status(document)
    return Readiness(told.state, told.reason)


def _by_status(document: Document, *, canary: bool = False) -> Readiness:
    """What the status says, where no Deployment does."""
    status = document.get("status") or {}
    # An InferenceService's observedGeneration is of its Deployment or Knative service.
    of_others = document["kind"] == "InferenceService"
    observed = None if of_others else status.get("observedGeneration")
    if observed is not None and observed < document["metadata"]["generation"]:
        return Readiness("waiting", _NOT_LOOKED)
    if deployment_mode(document) == "Knative":
        model = status.get("modelStatus") or {}
        if model.get("transitionStatus") == "BlockedByFailedLoad":
            said = (model.get("lastFailureInfo") or {}).get("message")
            return Readiness("failed", one_line(said or "the model fails to load"))
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    ready = conditions.get("Ready", {})
    if ready.get("status") != "True":
        return Readiness(
            "waiting", one_line(ready.get("message") or ready.get("reason") or "not Ready")
        )
    if canary and "canary" in document["spec"]:
        told = {each.get("name"): each for each in status.get("canaryStatuses") or ()}
        if not told.get(CANARY, {}).get("ready"):
            return Readiness("waiting", "the canary is not ready")
    return Readiness("ready", certain=observed is not None)


def _made_of(document: Document, workload: Document, *, canary: bool) -> bool:
    """Whether a Deployment is what KServe makes of the service as it is now."""
    template = workload["spec"]["template"]
    told = (template.get("metadata") or {}).get("annotations") or {}
    if document["kind"] != "InferenceService":
        return True
    if _ours(told) != _ours(document["metadata"].get("annotations") or {}):
        return False
    spec = document["spec"]
    predictor = (
        spec["canary"][0]["predictor"] if canary and spec.get("canary") else spec["predictor"]
    )
    return told.get(_SOURCE) in (None, predictor["model"].get("storageUri"))


def _ours(annotations: Document) -> Document:
    return {name: value for name, value in annotations.items() if name.startswith(PREFIX)}


def _rolled_out(service: Service, deployment: Document) -> Readiness:
    """Whether all pods of a Deployment are of its newest template, and available."""
    status = deployment.get("status") or {}
    if status.get("observedGeneration", 0) < deployment["metadata"]["generation"]:
        return Readiness("waiting", _NOT_LOOKED)
    wanted = deployment["spec"].get("replicas", 1)
    new, available, all_pods = (
        status.get(name, 0) for name in ("updatedReplicas", "availableReplicas", "replicas")
    )
    if wanted and (new, available, all_pods) == (wanted, wanted, wanted):
        return Readiness("ready")
    trouble = trouble_of(service, deployment)
    counts = f"{new} of {wanted} new pods are there"
    if all_pods > new:
        counts += f", {all_pods - new} of before"
    if trouble is None:
        return Readiness("waiting", f"{counts}, {available} available in all")
    state: Literal["failed", "stuck", "waiting"] = "waiting"
    if trouble.fatal or trouble.stuck:
        state = "failed" if trouble.fatal else "stuck"
    return Readiness(state, trouble.reason)
