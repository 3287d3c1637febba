"""Back to what a service served before: where a promotion fails, and by hand."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Event

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.api import ConflictError, UnreachableError
from quantlib.promotion.cluster import Service
from quantlib.promotion.llm_canary import KIND as LLM
from quantlib.promotion.merging import Document, unlike
from quantlib.promotion.readiness import NotReadyError, wait_until_ready
from quantlib.promotion.record import (
    BEFORE,
    Held,
    LostError,
    PromotionRecord,
    before_last,
    record_of,
)
from quantlib.promotion.rollout import Rollout, Say, deployment_mode, restoring
from quantlib.promotion.state import short

_STEP = "restoring"


def restore(held: Held, reason: str) -> str:
    """Restores what was there, waits until that answers, and says what became of it.

    Signals do not keep it from restoring; one more ends the waiting. The reason is one line.
    """
    service, record, rollout = held.service, held.record, held.rollout
    uri = service.kind.state(record.before).uri

    def once() -> str:
        noted = record_of(service.lease(), record.uid)
        if noted is None or noted.holder != record.holder:
            served = service.kind.state(service.get()).uri
            return f"nothing had to be restored: {service} serves {served}"
        story = f"rolled back {short(record.digest)} to {uri}: {reason}"
        return _back(held, story, impatient, failed=True)[1]

    try:
        with _signals_held_back(held.say) as impatient:
            seconds, every = rollout.restore_seconds, rollout.poll_seconds
            return rollout.clock.retry(once, UnreachableError, seconds, every, held.say)
    except LostError:
        return f"{service}: somebody else promotes now; nothing more was done"
    except QuantlibError as error:
        return (
            f"{service} could not be restored: {error}; it may serve either checkpoint. "
            f"When that is mended, `quantlib rollback --service {service.name} "
            f"--namespace {service.namespace}` restores {uri}"
        )


def roll_back(service: Service, rollout: Rollout, say: Say) -> str:
    """Restores what a service served before the last promotion, or before one that was abandoned.

    Raises:
        InvalidInputError: Nothing is known of a state before, or a promotion is under way.
        QuantlibError: The restored state does not get ready.
    """
    document, notes, kind = service.get(), service.lease(), service.kind
    uid = document["metadata"]["uid"]
    if record := record_of(notes, uid):
        record.require_abandoned(service, None, rollout.clock)
    before = record.before if record else before_last(notes, uid)
    if before is None:
        raise InvalidInputError.one(
            str(service), "no promotion of it is known, so there is nothing to go back to"
        )
    state = kind.state(before)
    mine = PromotionRecord(
        uid=uid,
        digest=state.digest or "by-hand",
        step="rollback",
        began=rollout.clock.stamp(),
        renewed=rollout.clock.utc(),
        before=before,
        route=record.route if record else None,
    )
    held = Held(service, mine, rollout, say)
    held.begin(document, notes)
    story = f"rolled back by hand from {kind.state(document).uri} to {state.uri}"
    answers, outcome = _back(held, story, Event(), None if record else {BEFORE: None})
    if not answers:
        raise QuantlibError(outcome)
    return f"{service}: {story}"


def put_route_back(held: Held) -> None:
    """Lets a route's traffic go where it went before the promotion."""
    if (route := held.record.route) is not None:
        rules = {"rules": route["spec"].get("rules")}
        path = held.service.route_path(route["metadata"]["name"])
        held.write(lambda found: found | {"spec": found["spec"] | rules}, path)


def take_canary_away(held: Held) -> None:
    """Lets the canary beside a service end, where there may be one."""
    if held.service.kind.name == LLM:
        held.take_away()


def _back(
    held: Held,
    story: str,
    impatient: Event,
    also: Mapping[str, None] | None = None,
    *,
    failed: bool = False,
) -> tuple[bool, str]:
    """Goes back, and ends the promotion; whether what was before answers, and what serves now."""
    service, clock = held.service, held.rollout.clock
    document = _put_back(held)
    uri, started, answers = service.kind.state(held.record.before).uri, clock.monotonic(), True
    held.say(f"{_STEP}: asked for {uri} again; the pods that are ready answer until its own are")
    try:
        wait_until_ready(held, _STEP, enough=impatient.is_set)
        outcome = f"{service} serves {uri} again, after {clock.monotonic() - started:.0f} s"
    except NotReadyError as error:
        outcome = f"{service} is to serve {uri} again, and does not answer with it yet: {error}"
        answers, story = False, f"{story}; {outcome}"
    held.finish(story, also or {})
    held.announce(document, "RolledBack", story, warning=failed or not answers)
    return answers, outcome


def _put_back(held: Held) -> Document:
    """Writes what was there before; under Knative it gets the traffic once it is ready."""
    kind, before, rollout = held.service.kind, held.record.before, held.rollout
    held.renew(_STEP)
    put_route_back(held)
    try:
        take_canary_away(held)
    except (ConflictError, InvalidInputError) as error:
        held.say(f"{_STEP}: {error}")
    document = held.service.get()
    in_canary = "canaryTrafficPercent" in document["spec"].get("predictor", {})
    hold = in_canary and deployment_mode(document) == "Knative"
    written = held.write(restoring(kind, before, hold_traffic=hold))
    if hold:
        try:
            wait_until_ready(held, _STEP, timeout=min(rollout.timeout, rollout.restore_seconds))
            written = held.write(restoring(kind, before))
        except NotReadyError as error:
            held.say(f"all traffic stays on the revision before the canary: {error}")
    elif left := unlike(before, written):
        held.say(f"{_STEP}: left as somebody else has set it meanwhile: {', '.join(left[:5])}")
    return written


@contextmanager
def _signals_held_back(say: Say) -> Iterator[Event]:
    """Keeps further signals from cutting the restoration short; they end its waiting."""
    impatient = Event()

    def note(*_: object) -> None:
        impatient.set()
        say(f"{_STEP}: what was before is written back first; nobody waits for its pods then")

    before = {}
    with suppress(ValueError):  # not the main thread, which alone gets signals
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield impatient
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
