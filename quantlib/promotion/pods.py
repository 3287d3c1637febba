"""Why pods do not get ready: what their statuses and logs say, in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from quantlib.promotion.api import ForbiddenError
from quantlib.promotion.cluster import Service
from quantlib.promotion.kinds import Document

MOST_RESTARTS = 3
"""A container that ended so often will end again."""

STUCK_SECONDS = 45.0
"""What a pod has been held up by for so long, and what no waiting changes, is a failure."""

_STUCK = {
    *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
    *("CreateContainerConfigError", "CreateContainerError", "RunContainerError"),
    *("CrashLoopBackOff",),
}
_TELLING = re.compile(r"error|exception|fatal|refused", re.IGNORECASE)


@dataclass(frozen=True)
class Trouble:
    """What keeps a pod from being ready.

    Attributes:
        reason: In one line.
        fatal: Whether that is the end: it ended too often.
        stuck: Whether no waiting is going to change it; a cluster may yet find room, though.
    """

    reason: str
    fatal: bool = False
    stuck: bool = False


def trouble_of(service: Service, deployment: Document) -> Trouble | None:
    """What keeps the new pods of a Deployment from being ready; None where nothing is seen.

    Args:
        service: The service, which the Deployment belongs to.
        deployment: The Deployment.
    """
    try:
        pods = service.pods(deployment)
    except ForbiddenError as error:
        return Trouble(f"its pods may not be looked at ({error.problems[0].what})")
    found = [trouble for pod in pods for trouble in _troubles(service, pod)]
    return max(found, key=lambda each: (each.fatal, each.stuck), default=None)


def _troubles(service: Service, pod: Document) -> Iterator[Trouble]:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            said = condition.get("message") or condition.get("reason") or "no node"
            yield Trouble(f"pod {name} has no node: {one_line(said)}")
    containers = (
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    )
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting") or {}
        restarts = container.get("restartCount", 0)
        ended = (container.get("state") or {}).get("terminated") or (
            container.get("lastState") or {}
        ).get("terminated")
        if ended and ended.get("exitCode") and not container.get("ready"):
            said = one_line(ended.get("message") or "") or _last_words(
                service, name, container["name"], previous="terminated" not in container["state"]
            )
            reason = f"{container['name']} of pod {name} ended with {ended['exitCode']}"
            if ended.get("reason") not in (None, "Error"):
                reason += f" ({ended['reason']})"
            times = f", {restarts} restarts" if restarts else ""
            reason += f"{times}: {said}" if said else times
            stuck = waiting.get("reason") in _STUCK
            yield Trouble(reason, restarts >= MOST_RESTARTS, stuck)
        elif waiting.get("reason") in _STUCK:
            said = one_line(waiting.get("message") or "")
            reason = f"{container['name']} of pod {name}: {waiting['reason']}"
            yield Trouble(f"{reason}: {said}" if said else reason, stuck=True)


def _last_words(service: Service, pod: str, container: str, *, previous: bool) -> str:
    """The last line of a log that tells of an error, else the last line."""
    lines = [
        line for line in service.log(pod, container, previous=previous).splitlines() if line.strip()
    ]
    telling = [line for line in lines if _TELLING.search(line)]
    return one_line((telling or lines or [""])[-1])


def one_line(text: str) -> str:
    """The beginning of a text, with its white space as single spaces."""
    return " ".join(text.split())[:300]
