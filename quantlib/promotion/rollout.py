"""The steps by which a service goes over to another checkpoint, as patches."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from quantlib.errors import InvalidInputError
from quantlib.promotion.kinds import Document, Kind
from quantlib.promotion.state import State

MODE = "serving.kserve.io/deploymentMode"
CANARY = "canary"
_NOT_OF_A_CANARY = ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling")
"""KServe refuses a canary that has one of these: its pods are as many as its share asks for."""

_MODES = {
    "RawDeployment": "Standard",
    "Standard": "Standard",
    "Serverless": "Knative",
    "Knative": "Knative",
}


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: For people.
        patch: All that is ours in the service meanwhile.
        is_canary: Whether the new checkpoint gets part of the traffic only.
        waits_for: Name of the canary that has to be ready; None without one by name.
    """

    name: str
    patch: Document
    is_canary: bool = False
    waits_for: str | None = None


def deployment_mode(document: Document) -> str | None:
    """``Standard`` or ``Knative``: by the annotation, else by the status; None if neither says."""
    annotations = document["metadata"].get("annotations") or {}
    said = annotations.get(MODE) or (document.get("status") or {}).get("deploymentMode")
    return _MODES.get(said or "")


def steps_of(
    kind: Kind, document: Document, previous: State, wanted: State, percents: Sequence[int]
) -> list[Step]:
    """The steps from one state to another.

    Under Knative the new revision gets ``canaryTrafficPercent``; in Standard mode, which ignores
    that field, a second predictor in ``spec.canary`` gets its share.

    Args:
        kind: Of the service.
        document: The service.
        previous: What it serves.
        wanted: What it is to serve.
        percents: Of the traffic, for the canary; none to go over at once.

    Raises:
        InvalidInputError: The cluster would ignore the canary.
    """
    last = kind.patch(document, wanted)
    if not percents:
        return [Step("all traffic", last)]
    if kind.name != "InferenceService":
        raise InvalidInputError.one(
            "--canary", f"a {kind.name} has no canary", "promote without --canary"
        )
    mode = deployment_mode(document)
    if mode is None:
        raise InvalidInputError.one(
            "--canary",
            f"neither the annotation {MODE} nor the status says how the service is deployed",
            f"annotate it with {MODE}: Standard or Knative, as it is, or promote without --canary",
        )
    if mode == "Knative":
        return [
            *(
                Step(f"{percent} % of traffic", _with_percent(last, percent), True)
                for percent in percents
            ),
            Step("all traffic", last),
        ]
    canary = _predictor(document, last)
    before = kind.patch(document, previous)
    return [
        *(
            Step(f"{percent} % of traffic", _with_canary(before, canary, percent), True, CANARY)
            for percent in percents
        ),
        Step("the main predictor", _with_canary(last, canary, percents[-1]), False, CANARY),
        Step("all traffic", last),
    ]


def restoring(
    kind: Kind, document: Document, previous: State, *, hold_traffic: bool = False
) -> Document:
    """The patch that restores a state, without any canary of ours.

    Args:
        kind: Of the service.
        document: The service.
        previous: The state.
        hold_traffic: Under Knative, keeps all traffic on the revision before the canary, since the
            restored one is a new revision that first has to get ready.
    """
    patch = kind.patch(document, previous)
    return _with_percent(patch, 0) if hold_traffic else patch


def foreign_canary(document: Document) -> bool:
    """Whether the service has a canary already; 100 % of the traffic is what ends one."""
    spec = document["spec"]
    percent = (spec.get("predictor") or {}).get("canaryTrafficPercent")
    return bool(spec.get("canary")) or percent not in (None, 100)


def _with_percent(patch: Document, percent: int) -> Document:
    changed = deepcopy(patch)
    changed["spec"]["predictor"]["canaryTrafficPercent"] = percent
    return changed


def _predictor(document: Document, patch: Document) -> Document:
    predictor: dict[str, Any] = deepcopy(document["spec"]["predictor"])
    predictor["name"] = CANARY
    for name in _NOT_OF_A_CANARY:
        predictor.pop(name, None)
    # A canary's container needs a name; this is the one that KServe gives to a model's.
    model = {"name": "kserve-container"} | predictor["model"]
    predictor["model"] = model | patch["spec"]["predictor"]["model"]
    return predictor


def _with_canary(patch: Document, predictor: Document, percent: int) -> Document:
    changed = deepcopy(patch)
    changed["spec"]["canary"] = [{"trafficPercent": percent, "predictor": predictor}]
    return changed
