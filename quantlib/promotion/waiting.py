"""Waiting until the pods that were asked for answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quantlib.errors import QuantlibError
from quantlib.promotion import record as records
from quantlib.promotion.api import UnreachableError
from quantlib.promotion.clock import SYSTEM_CLOCK, Clock
from quantlib.promotion.cluster import Service
from quantlib.promotion.kinds import Document
from quantlib.promotion.pods import STUCK_SECONDS
from quantlib.promotion.readiness import SETTLE_SECONDS, Readiness, look
from quantlib.promotion.record import Record

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rollout:
    """How a service goes over.

    Attributes:
        percents: Of the traffic, for the canary; none to go over at once.
        route: An HTTPRoute that gives the canary its share; None for what the cluster does itself.
        in_place: Whether new pods replace those that serve without standing beside them first.
        url: Where the service answers; None for what its status says.
        canary_url: Where the new checkpoint alone answers while it is beside the other.
        timeout: Seconds that each step gets to be ready.
        restore_seconds: How long to try to restore while the API server does not answer.
        poll_seconds: Between looks.
        settle_seconds: See :data:`quantlib.promotion.readiness.SETTLE_SECONDS`.
        clock: By which all this is measured.
    """

    percents: tuple[int, ...] = ()
    route: str | None = None
    in_place: bool = False
    url: str | None = None
    canary_url: str | None = None
    timeout: float = 1800.0
    restore_seconds: float = 120.0
    poll_seconds: float = 2.0
    settle_seconds: float = SETTLE_SECONDS
    clock: Clock = SYSTEM_CLOCK


def wait_until_ready(
    service: Service,
    mine: Record,
    step: str,
    rollout: Rollout,
    say: Say,
    *,
    canary: bool = False,
    enough: Callable[[], bool] = lambda: False,
) -> Document:
    """Waits until the pods that were last asked for answer, and no others.

    Args:
        service: The service.
        mine: The promotion, which is renewed meanwhile.
        step: What is waited for, in messages.
        rollout: How long to wait.
        say: Told each reason once.
        canary: Whether the canary's pods are waited for.
        enough: Whether somebody wants no more waiting.

    Returns:
        The service as it is then.

    Raises:
        QuantlibError: They do not get ready.
    """
    clock = rollout.clock
    started = renewed = since = clock.monotonic()
    state, reason = "", ""
    while clock.monotonic() - started < rollout.timeout and not enough():
        try:
            document = service.get()
            seen = look(service, document, canary=canary)
            if clock.monotonic() - renewed > records.STALE.total_seconds() / 4:
                records.renew(service, mine, step, clock)
                renewed = clock.monotonic()
        except UnreachableError as error:
            seen = Readiness("waiting", str(error))
        now = clock.monotonic()
        if seen.state != state:
            state, since = seen.state, now
        if state == "ready" and (seen.certain or now - since >= rollout.settle_seconds):
            return document
        if state != "ready" and seen.reason != reason:
            say(f"{step}: {seen.reason}")
        if state == "failed" or (state == "stuck" and now - since > STUCK_SECONDS):
            raise QuantlibError(f"{service}: {step}: {seen.reason}")
        reason = seen.reason or reason
        clock.sleep(rollout.poll_seconds)
    if enough():
        raise QuantlibError(f"{service}: {step}: nobody waited for it to be ready: {reason}")
    raise QuantlibError(f"{service}: {step}: not ready after {rollout.timeout:.0f} s: {reason}")
