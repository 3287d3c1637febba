"""Whether the pods that were last asked for answer, and no others; and why they do not.

A service in Standard mode stays Ready while pods of before are: what tells is the Deployment that
KServe makes of it, whose pods carry the service's own annotations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from quantlib.errors import QuantlibError
from quantlib.promotion.api import ForbiddenError, UnreachableError
from quantlib.promotion.cluster import Service
from quantlib.promotion.llm_canary import KIND as LLM
from quantlib.promotion.merging import Document, annotations_of
from quantlib.promotion.record import STALE, Held
from quantlib.promotion.rollout import CANARY, SETTLE_SECONDS, deployment_mode, workload_name
from quantlib.promotion.state import PREFIX

MOST_RESTARTS = 3
"""A container that ended so often will end again."""

STUCK_SECONDS = 45.0
"""What a pod has been held up by for so long, and what no waiting changes, is a failure."""

_STUCK = {
    *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
    *("CreateContainerConfigError", "CreateContainerError", "RunContainerError"),
    *("CrashLoopBackOff",),
}
_STATES = ("ready", "waiting", "stuck", "failed")
_TELLING = re.compile(r"error|exception|fatal|refused", re.IGNORECASE)
_SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"


@dataclass(frozen=True)
class Readiness:
    """How a service fares.

    Attributes:
        state: ``failed`` is what waiting does not change; ``stuck`` what it hardly changes, though
            a cluster may yet find room.
        reason: Why it is not ready, in one line.
        certain: Whether what was seen is known to be of the latest generation.
    """

    state: Literal["ready", "waiting", "stuck", "failed"]
    reason: str = ""
    certain: bool = True


_NOT_LOOKED = Readiness("waiting", "its controller has not looked yet")


class NotReadyError(QuantlibError):
    """What was waited for does not get ready."""


def wait_until_ready(
    held: Held,
    step: str,
    *,
    canary: bool = False,
    timeout: float | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> Document:
    """Waits until the pods, or the canary's, that were last asked for answer, and no others.

    Renews the promotion. ``step`` is what is waited for, in messages; ``timeout`` is the rollout's
    where it is None; ``enough`` is whether somebody wants no more waiting.

    Returns:
        The service as it is then.

    Raises:
        NotReadyError: They do not get ready.
    """
    service, rollout, clock = held.service, held.rollout, held.rollout.clock
    timeout = rollout.timeout if timeout is None else timeout
    started = renewed = since = clock.monotonic()
    state, reason = "", ""
    while clock.monotonic() - started < timeout and not enough():
        try:
            document = service.get()
            seen = look(service, document, canary=canary)
            if clock.monotonic() - renewed > STALE.total_seconds() / 4:
                held.renew(step)
                renewed = clock.monotonic()
        except UnreachableError as error:
            seen = Readiness("waiting", str(error))
        now = clock.monotonic()
        if seen.state != state:
            state, since = seen.state, now
        if state == "ready" and (seen.certain or now - since >= SETTLE_SECONDS):
            return document
        if state != "ready" and seen.reason != reason:
            held.say(f"{step}: {seen.reason}")
        if state == "failed" or (state == "stuck" and now - since > STUCK_SECONDS):
            raise NotReadyError(f"{service}: {step}: {seen.reason}")
        reason = seen.reason or reason
        clock.sleep(rollout.poll_seconds)
    what = "nobody waited for it to be ready" if enough() else f"not ready after {timeout:.0f} s"
    raise NotReadyError(f"{service}: {step}: {what}: {reason}")


def look(service: Service, document: Document, *, canary: bool = False) -> Readiness:
    """Looks at the pods that a service, as it was just read, or its canary was last asked for."""
    if service.kind.name == "Deployment":
        return _rolled_out(service, document)
    if canary and service.kind.name == LLM:
        return look(service.canary, service.canary.get())
    name = workload_name(document, canary=canary)
    workload = None if name is None else service.deployment(name)
    if workload is None:
        return _by_status(document, canary=canary)
    if not _made_of(document, workload, canary=canary):
        return _NOT_LOOKED
    seen = _rolled_out(service, workload)
    if seen.state != "ready" or canary:
        return seen
    return replace(_by_status(document), certain=True)


def _by_status(document: Document, *, canary: bool = False) -> Readiness:
    """What the status says, where no Deployment does."""
    status = document.get("status") or {}
    # An InferenceService's observedGeneration is of its Deployment or Knative service.
    of_others = document["kind"] == "InferenceService"
    observed = None if of_others else status.get("observedGeneration")
    if observed is not None and observed < document["metadata"]["generation"]:
        return _NOT_LOOKED
    model = status.get("modelStatus") or {}
    if deployment_mode(document) == "Knative" and (
        model.get("transitionStatus") == "BlockedByFailedLoad"
    ):
        said = (model.get("lastFailureInfo") or {}).get("message")
        return Readiness("failed", _one_line(said or "the model fails to load"))
    ready = {each["type"]: each for each in status.get("conditions") or ()}.get("Ready", {})
    if ready.get("status") != "True":
        said = ready.get("message") or ready.get("reason") or "not Ready"
        return Readiness("waiting", _one_line(said))
    if canary and "canary" in document["spec"]:
        told = {each.get("name"): each for each in status.get("canaryStatuses") or ()}
        if not told.get(CANARY, {}).get("ready"):
            return Readiness("waiting", "the canary is not ready")
    return Readiness("ready", certain=observed is not None)


def _made_of(document: Document, workload: Document, *, canary: bool) -> bool:
    """Whether a Deployment is what KServe makes of the service as it is now."""
    if document["kind"] != "InferenceService":
        return True
    told, noted = annotations_of(workload["spec"]["template"]), annotations_of(document)
    if any(told.get(k) != noted.get(k) for k in {*told, *noted} if k.startswith(PREFIX)):
        return False
    spec = document["spec"]
    part = spec["canary"][0] if canary and spec.get("canary") else spec
    return told.get(_SOURCE) in (None, part["predictor"]["model"].get("storageUri"))


def _rolled_out(service: Service, deployment: Document) -> Readiness:
    """Whether all pods of a Deployment are of its newest template, and available."""
    status = deployment.get("status") or {}
    if status.get("observedGeneration", 0) < deployment["metadata"]["generation"]:
        return _NOT_LOOKED
    wanted = deployment["spec"].get("replicas", 1)
    new, available, all_pods = (
        status.get(name, 0) for name in ("updatedReplicas", "availableReplicas", "replicas")
    )
    if wanted and (new, available, all_pods) == (wanted, wanted, wanted):
        return Readiness("ready")
    counts = f"{new} of {wanted} new pods are there"
    if all_pods > new:
        counts += f", {all_pods - new} of before"
    try:
        pods = service.pods(deployment)
    except ForbiddenError as error:
        what = f"its pods may not be looked at ({error.problems[0].what})"
        return Readiness("waiting", what)
    return max(
        (trouble for pod in pods for trouble in _troubles(service, pod)),
        key=lambda trouble: _STATES.index(trouble.state),
        default=Readiness("waiting", f"{counts}, {available} available in all"),
    )


def _troubles(service: Service, pod: Document) -> Iterator[Readiness]:
    """What keeps a pod from being ready: what its status and its logs say, each in one line."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            said = condition.get("message") or condition.get("reason") or "no node"
            yield Readiness("waiting", f"pod {name} has no node: {_one_line(said)}")
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or ():
            if trouble := _trouble(service, name, container):
                yield trouble


def _trouble(service: Service, pod: str, container: Document) -> Readiness | None:
    states = [container.get("state") or {}, container.get("lastState") or {}]
    waiting = states[0].get("waiting") or {}
    ended: Document = next(filter(None, (state.get("terminated") for state in states)), {})
    is_stuck = waiting.get("reason") in _STUCK
    who, restarts = f"{container['name']} of pod {pod}", container.get("restartCount", 0)
    if not ended.get("exitCode") or container.get("ready"):
        said = _one_line(waiting.get("message") or "")
        told = [who, waiting.get("reason"), said]
        return Readiness("stuck", ": ".join(filter(None, told))) if is_stuck else None
    said = _one_line(ended.get("message") or "") or _last_words(
        service.log(pod, container["name"], previous="terminated" not in states[0])
    )
    why = f" ({ended['reason']})" if ended.get("reason") not in (None, "Error") else ""
    often = f", {restarts} restarts" if restarts else ""
    reason = ": ".join(filter(None, (f"{who} ended with {ended['exitCode']}{why}{often}", said)))
    if restarts >= MOST_RESTARTS:
        return Readiness("failed", reason)
    return Readiness("stuck" if is_stuck else "waiting", reason)


def _last_words(log: str) -> str:
    """The last line of a log that tells of an error, else the last line."""
    lines = [line for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if _TELLING.search(line)]
    return _one_line((telling or lines or [""])[-1])


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
