"""Whether a service runs what was last asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from quantlib.promotion.kinds import Document

SETTLE_SECONDS = 30.0
"""Where a status does not say which generation it is of, it has to stay ready for so long."""


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


def readiness(document: Document, canary: str | None = None) -> Readiness:
    """Reads a status.

    Args:
        document: The service.
        canary: Name of a canary that has to be ready too.
    """
    status = document.get("status") or {}
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    observed = status.get("observedGeneration")
    if observed is not None and observed < document["metadata"]["generation"]:
        return Readiness("waiting", "its controller has not looked yet")
    if document["kind"] == "Deployment":
        return _deployment(document, conditions)
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
    return Readiness("ready", certain=observed is not None)


def _deployment(document: Document, conditions: dict[str, Any]) -> Readiness:
    progressing = conditions.get("Progressing", {})
    if progressing.get("reason") == "ProgressDeadlineExceeded":
        return Readiness("failed", progressing.get("message") or "the new pods do not get ready")
    status, wanted = document.get("status") or {}, document["spec"].get("replicas", 1)
    counts = [status.get(name, 0) for name in ("updatedReplicas", "availableReplicas", "replicas")]
    if "observedGeneration" not in status or counts != [wanted] * 3:
        return Readiness("waiting", f"{counts[0]} of {wanted} replicas are new, {counts[1]} ready")
    return Readiness("ready")
