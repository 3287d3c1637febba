"""How a service goes over to another checkpoint: as asked for, by steps, and what each makes of it.

Source of what a route is: Gateway API v1, ``HTTPRouteRule.backendRefs`` and their ``weight``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion import llm_canary
from quantlib.promotion.kinds import Kind, pod_of
from quantlib.promotion.merging import Document, annotations_of, with_missing

MODE = "serving.kserve.io/deploymentMode"
CANARY = "canary"
SETTLE_SECONDS = 30.0
"""Where a status does not say which generation it is of, it has to stay ready for so long."""

_NOT_OF_A_CANARY = ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling")
"""KServe refuses a canary that has one of these: its pods are as many as it says itself."""

_OF_VERIFICATION = ("storageContainerName", "initContainers", "volumes")
_SCALE = ("minReplicas", "maxReplicas")
_OLD_MODES = {"RawDeployment": "Standard", "Serverless": "Knative"}
"""As older releases of KServe call its modes."""

Change = Callable[[Document], Document]
Say = Callable[[str], None]
_Result = TypeVar("_Result")


class Clock:
    """The machine's clock. Tests have one of their own, which waits for nobody."""

    def monotonic(self) -> float:
        """Seconds since some moment, which never go back."""
        return time.monotonic()

    def utc(self) -> datetime:
        """The time of day."""
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)

    def stamp(self) -> str:
        """The time of day, as annotations hold it."""
        return self.utc().isoformat(timespec="seconds")

    def retry(
        self,
        action: Callable[[], _Result],
        errors: type[QuantlibError] | tuple[type[QuantlibError], ...],
        seconds: float,
        every: float,
        say: Say = lambda _: None,
    ) -> _Result:
        """What an action gives, tried again for some seconds while it raises such an error."""
        deadline = self.monotonic() + seconds
        while True:
            try:
                return action()
            except errors as error:
                if self.monotonic() > deadline:
                    raise
                say(str(error))
            self.sleep(every)


@dataclass(frozen=True)
class Rollout:
    """How a service goes over.

    Attributes:
        percents: Of the traffic, for the canary; none to go over at once.
        route: An HTTPRoute that gives the canary its share; None for what the cluster does itself.
        in_place: Whether new pods replace those that serve without standing beside them first.
        url: Where the service answers; None for what its status says.
        canary_url: Where the new checkpoint alone answers while it is beside the other.
        verify_on_start: Whether pods verify their copy; None for where the cluster can.
        timeout: Seconds that each step gets to be ready.
        restore_seconds: How long to try to restore while the API server does not answer.
    """

    percents: tuple[int, ...] = ()
    route: str | None = None
    in_place: bool = False
    url: str | None = None
    canary_url: str | None = None
    verify_on_start: bool | None = None
    timeout: float = 1800.0
    restore_seconds: float = 120.0
    poll_seconds: float = 2.0
    clock: Clock = Clock()  # noqa: RUF009 (it has no state)


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: For people, and for the record: a promotion is gone on with at the step of this name.
        change: What it makes of the service as it is found.
        is_canary: Whether the new checkpoint is still beside the one that serves.
        percent: Its share of the traffic; None where it has none that is known.
        beside: The object beside the service that serves the new checkpoint; None for none.
    """

    name: str
    change: Change
    is_canary: bool = False
    percent: int | None = None
    beside: Document | None = None


def deployment_mode(document: Document) -> str | None:
    """Such as ``Standard`` or ``Knative``: by the annotation, else the status; else None."""
    told = (document.get("status") or {}).get("deploymentMode")
    mode: str | None = annotations_of(document).get(MODE) or told
    return _OLD_MODES.get(mode or "", mode)


def workload_name(document: Document, *, canary: bool = False) -> str | None:
    """The Deployment that KServe makes of a service or of its canary; None under Knative."""
    name: str = document["metadata"]["name"]
    if document["kind"] == llm_canary.KIND:
        return f"{llm_canary.canary_name(name) if canary else name}-kserve"
    if document["kind"] == "Deployment" or deployment_mode(document) == "Knative":
        return None
    own = CANARY if canary else document["spec"].get("predictor", {}).get("name")
    return "-".join(filter(None, (name, own, "predictor")))


def in_cluster_name(document: Document, *, canary: bool = False) -> str | None:
    """The Service before the pods of a service or of its canary; None where KServe makes none."""
    name = workload_name(document, canary=canary)
    return f"{name}-workload-svc" if document["kind"] == llm_canary.KIND else name


def has_second_predictor(document: Document) -> bool:
    """Whether a canary is a part of the service itself."""
    return document["kind"] == "InferenceService" and deployment_mode(document) == "Standard"


def can_have_a_canary(document: Document) -> bool:
    """Whether new pods can stand beside those that serve, without traffic of their own."""
    return document["kind"] == llm_canary.KIND or has_second_predictor(document)


def foreign_canary(document: Document) -> bool:
    """Whether the service has a canary already; 100 % of the traffic is what ends one."""
    spec = document["spec"]
    percent = (spec.get("predictor") or {}).get("canaryTrafficPercent")
    return bool(spec.get("canary")) or percent not in (None, 100)


def require_canary(document: Document) -> None:
    """Refuses a canary that the cluster would ignore, with InvalidInputError."""
    if document["kind"] == "Deployment":
        what, remedy = "a Deployment has no canary", "promote without --canary"
        raise InvalidInputError.one("--canary", what, remedy)
    is_known = deployment_mode(document) in ("Standard", "Knative")
    if document["kind"] == "InferenceService" and not is_known:
        raise InvalidInputError.one(
            "--canary",
            f"neither the annotation {MODE} nor the status says how the service is deployed",
            f"annotate it with {MODE}: Standard or Knative, as it is, or promote without --canary",
        )


def steps_of(
    before: Document, serve: Change, percents: Sequence[int], *, dark: bool, split: bool
) -> list[Step]:
    """The steps from one state to another.

    Under Knative the new revision gets ``canaryTrafficPercent``. In Standard mode a second
    predictor in ``spec.canary`` serves the new checkpoint: KServe 0.20 gives it pods and a Service,
    and no traffic, which takes a route. Beside an LLMInferenceService stands a second one.

    Args:
        before: The service before the promotion.
        serve: What makes of a service one that serves the checkpoint.
        percents: Of the traffic, for the canary.
        dark: Whether new pods first stand beside those that serve, without traffic.
        split: Whether a route, of ours or KServe's own, gives the canary its share.
    """

    def last(document: Document) -> Document:
        return serve(_without_canary(document, before))

    def revision(percent: int) -> Change:
        return lambda document: _with_percent(last(document), percent)

    def canary(percent: int) -> Change:
        return lambda document: _with_canary(document, before, serve, percent)

    if before["kind"] == llm_canary.KIND:
        shares = [each for each in percents if each] if dark and split else []
        beside = _steps_beside(before, serve(before), shares) if dark else []
        return [*beside, Step("all traffic", last)]
    on_knative = deployment_mode(before) == "Knative"
    steps = [Step("dark launch", canary(0), True, 0 if split else None)] if dark else []
    if split or on_knative:
        steps += [
            Step(f"{each} % of traffic", (revision if on_knative else canary)(each), True, each)
            for each in percents
            if each or on_knative
        ]
    return [*steps, Step("all traffic", last)]


def _steps_beside(before: Document, served: Document, percents: Sequence[int]) -> list[Step]:
    def sharing(percent: int) -> Change:
        return lambda document: llm_canary.sharing(document, percent)

    def beside(percent: int | None) -> Document:
        return llm_canary.canary_of(before, served, percent)

    least = 0 if percents else None
    dark = Step("dark launch", lambda document: document, True, least, beside(None))
    shares = [
        Step(f"{each} % of traffic", sharing(each), True, each, beside(each)) for each in percents
    ]
    return [dark, *shares]


def restoring(kind: Kind, before: Document, *, hold_traffic: bool = False) -> Change:
    """What brings a service back to what it was, with all that it had.

    What others set to another value meanwhile stays so. Under Knative the restored revision is a
    new one: ``hold_traffic`` keeps all traffic on the one before the canary until it is ready.
    """
    state = kind.state(before)

    def change(document: Document) -> Document:
        restored = kind.changed(_without_canary(document, before), state)
        _take_over(pod_of(restored), pod_of(before), _OF_VERIFICATION)
        restored["spec"] = with_missing(restored["spec"], before["spec"])
        return _with_percent(restored, 0) if hold_traffic else restored

    return change


def _take_over(fields: Document, old: Document, names: Sequence[str]) -> None:
    for name in names:
        fields.pop(name, None)
        if name in old:
            fields[name] = old[name]


def _with_percent(document: Document, percent: int) -> Document:
    changed = deepcopy(document)
    changed["spec"]["predictor"]["canaryTrafficPercent"] = percent
    return changed


def _without_canary(document: Document, before: Document) -> Document:
    """A service as it is without a canary of ours; its scale is what it was before one."""
    if document["kind"] != "InferenceService":
        return llm_canary.not_sharing(document) if document["kind"] == llm_canary.KIND else document
    changed = deepcopy(document)
    predictor, old = changed["spec"]["predictor"], before["spec"]["predictor"]
    had_canary = changed["spec"].pop("canary", None)
    _take_over(predictor, old, ("canaryTrafficPercent", *(_SCALE if had_canary else ())))
    return changed


def _with_canary(document: Document, before: Document, serve: Change, percent: int) -> Document:
    """A service with a second predictor, and as many pods of its own as without one.

    KServe takes the canary's pods from the ``minReplicas`` of the others from the first moment on,
    before any of them is ready: the others are asked for so many more.
    """
    changed = deepcopy(document)
    predictor, old = changed["spec"]["predictor"], before["spec"]["predictor"]
    least = int(old.get("minReplicas") or 1)
    pods = max(1, math.ceil(least * percent / 100))
    if least > 1:
        predictor["minReplicas"] = least + pods
        if (old.get("maxReplicas") or least + pods) < least + pods:
            predictor["maxReplicas"] = least + pods
    second: dict[str, Any] = deepcopy(serve(before)["spec"]["predictor"])
    for name in (*_NOT_OF_A_CANARY, "canaryTrafficPercent"):
        second.pop(name, None)
    # A canary's container needs a name; this is the one that KServe gives to a model's.
    second["model"] = {"name": "kserve-container"} | second["model"]
    second |= {"name": CANARY, "minReplicas": pods}
    changed["spec"]["canary"] = [{"trafficPercent": percent, "predictor": second}]
    return changed


def require_route(route: Document, service: Document, *, can_share: bool) -> None:
    """Refuses an HTTPRoute that can give no canary a share, with InvalidInputError."""
    where = f"--route {route['metadata']['name']}"
    if not can_share:
        raise InvalidInputError.one(
            where, "shares traffic with a canary of a service in Standard mode", "give --canary too"
        )
    for owner in route["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            raise InvalidInputError.one(
                where,
                f"belongs to {owner['kind']} {owner['name']}, which puts back what is changed",
                "make a route of your own that leads to the same Service",
            )
    main = workload_name(service)
    if not any(_leads_to(rule, main) for rule in route["spec"].get("rules") or ()):
        what = f"no rule of it leads to the Service {main}, and to it alone"
        raise InvalidInputError.one(where, what)


def weighed(before: Document, service: Document, percent: int) -> Change:
    """What gives a canary of the service its share of a route, which was as told before."""
    rules = deepcopy(before["spec"]["rules"])
    main, second = workload_name(service), workload_name(service, canary=True)
    for rule in rules:
        if _leads_to(rule, main):
            (backend,) = rule["backendRefs"]
            rule["backendRefs"] = [
                backend | {"weight": 100 - percent},
                backend | {"name": second, "weight": percent},
            ]
    return lambda found: found | {"spec": found["spec"] | {"rules": rules}}


def _leads_to(rule: Document, name: str | None) -> bool:
    return [each.get("name") for each in rule.get("backendRefs") or ()] == [name]
