"""Whether a service runs what was last asked of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from quantlib.promotion.kinds import Document

SETTLE_SECONDS = 30.0
"""Where a status does not say which generation it is of, it has to stay ready for so long."""

_NOT_LOOKED = "its controller has not looked yet"
_SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"


@dataclass(frozen=True)
class Readiness:
    """What a status says.

    Attributes:
        state: ``failed`` is what waiting does not change.
        reason: Why it is not ready.
        certain: Whether the status is known to be of the latest generation.
    """

    state: Literal["ready", "waiting", "failed"]
    reason: str = ""
    certain: bool = True


def readiness(
    document: Document, canary: str | None = None, workload: Document | None = None
) -> Readiness:
    """Reads a status.

    Args:
        document: The service.
        canary: Name of a canary that has to be ready too.
        workload: The Deployment that KServe makes of an InferenceService in Standard mode, which is
            Ready while pods of before are.
    """
    if document["kind"] == "Deployment":
        return _deployment(document)
    status = document.get("status") or {}
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    # An InferenceService's observedGeneration is of its Deployment or Knative service.
    of_others = document["kind"] == "InferenceService"
    observed = None if of_others else status.get("observedGeneration")
    if observed is not None and observed < document["metadata"]["generation"]:
        return Readiness("waiting", _NOT_LOOKED)
    source = _source(workload) if workload else None
    if workload and not _looked_at(document, source):
        return Readiness("waiting", _NOT_LOOKED)
    failure = (status.get("modelStatus") or {}).get("lastFailureInfo") or {}
    if (status.get("modelStatus") or {}).get("transitionStatus") == "BlockedByFailedLoad":
        return Readiness("failed", failure.get("message") or "the model fails to load")
    ready = conditions.get("Ready", {})
    if ready.get("status") != "True":
        return Readiness("waiting", ready.get("message") or ready.get("reason") or "not Ready")
    if canary is not None:
        states = {each.get("name"): each for each in status.get("canaryStatuses") or ()}
        if not states.get(canary, {}).get("ready"):
            return Readiness("waiting", f"the canary {canary} is not ready")
    rolled_out = _deployment(workload) if workload else Readiness("ready")
    return replace(rolled_out, certain=(source or observed) is not None)


def _looked_at(document: Document, source: str | None) -> bool:
    """Whether KServe has made of an InferenceService what its spec asks for."""
    spec, status = document["spec"], document.get("status") or {}
    asked = {each["predictor"]["name"]: each["trafficPercent"] for each in spec.get("canary") or ()}
    told = {each["name"]: each["trafficPercent"] for each in status.get("canaryStatuses") or ()}
    return asked == told and source in (None, spec["predictor"]["model"].get("storageUri"))


def _source(workload: Document) -> str | None:
    """Where the pods' model is from, by an annotation of KServe's; None where it does not say."""
    annotations: dict[str, str] = workload["spec"]["template"]["metadata"].get("annotations") or {}
    return annotations.get(_SOURCE)


def _deployment(document: Document) -> Readiness:
    status = document.get("status") or {}
    if status.get("observedGeneration", 0) < document["metadata"]["generation"]:
        return Readiness("waiting", _NOT_LOOKED)
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    progressing = conditions.get("Progressing", {})
    if progressing.get("reason") == "ProgressDeadlineExceeded":
        return Readiness("failed", progressing.get("message") or "the new pods do not get ready")
    wanted = document["spec"].get("replicas", 1)
    counts = [status.get(name, 0) for name in ("updatedReplicas", "availableReplicas", "replicas")]
    if counts != [wanted] * 3:
        return Readiness("waiting", f"{counts[0]} of {wanted} replicas are new, {counts[1]} ready")
    return Readiness("ready")
