"""Back to what a service served before: where a promotion fails, and by hand."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.api import UnreachableError
from quantlib.promotion.cluster import Service
from quantlib.promotion.merging import unlike
from quantlib.promotion.readiness import wait_until_ready
from quantlib.promotion.record import (
    BEFORE,
    Held,
    LostError,
    Record,
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
    with _undisturbed(held.say) as impatient:
        return _restored(held, reason, impatient)


def _restored(held: Held, reason: str, impatient: Event) -> str:
    service, rollout, clock = held.service, held.rollout, held.rollout.clock
    before = service.kind.state(held.record.before)
    deadline = clock.monotonic() + rollout.restore_seconds
    while True:
        try:
            document, record = service.get(), record_of(service.notes(), held.record.uid)
            if record is None or record.holder != held.record.holder:
                served = service.kind.state(document).uri
                return f"nothing had to be restored: {service} serves {served}"
            _put_back(held)
            outcome, answers = _wait(held, impatient)
            story = f"rolled back {short(held.record.digest)} to {before.uri}: {reason}"
            held.finish(story if answers else f"{story}; {outcome}", {})
            held.tell(document, "RolledBack", story, warning=True)
            return outcome
        except LostError:
            return f"{service}: somebody else promotes now; nothing more was done"
        except QuantlibError as error:
            if not isinstance(error, UnreachableError) or clock.monotonic() > deadline:
                return (
                    f"{service} could not be restored: {error}; it may serve either checkpoint. "
                    f"When that is mended, `quantlib rollback --service {service.name} "
                    f"--namespace {service.namespace}` restores {before.uri}"
                )
            held.say(f"{_STEP}: {error}")
            clock.sleep(rollout.poll_seconds)


def roll_back(service: Service, rollout: Rollout, say: Say) -> str:
    """Restores what a service served before the last promotion, or before one that was abandoned.

    Raises:
        InvalidInputError: Nothing is known of a state before, or a promotion is under way.
        QuantlibError: The restored state does not get ready.
    """
    clock = rollout.clock
    document, notes = service.get(), service.notes()
    uid = document["metadata"]["uid"]
    record, current = record_of(notes, uid), service.kind.state(document)
    also: dict[str, str | None] = {}
    if record is not None:
        record.require_abandoned(service, None, clock)
        before = record.before
    elif (known := before_last(notes, uid)) is not None:
        before, also = known, {BEFORE: None}
    else:
        raise InvalidInputError.one(
            str(service), "no promotion of it is known, so there is nothing to go back to"
        )
    state = service.kind.state(before)
    mine = Record(
        uid=uid,
        digest=state.digest or "by-hand",
        step="rollback",
        began=clock.stamp(),
        renewed=clock.utc(),
        before=before,
        route=record.route if record else None,
    )
    held = Held(service, mine, rollout, say)
    held.begin(document, notes)
    story = f"rolled back by hand from {current.uri} to {state.uri}"
    _put_back(held)
    outcome, answers = _wait(held, Event())
    told = story if answers else f"{story}; {outcome}"
    held.finish(told, also)
    held.tell(document, "RolledBack", told, warning=not answers)
    if not answers:
        raise QuantlibError(outcome)
    return f"{service}: {story}"


def put_route_back(held: Held) -> None:
    """Lets a route's traffic go where it went before the promotion."""
    if (route := held.record.route) is not None:
        rules = {"rules": route["spec"].get("rules")}
        path = held.service.route_path(route["metadata"]["name"])
        held.write(lambda found: found | {"spec": found["spec"] | rules}, path)


def _put_back(held: Held) -> None:
    """Writes what was there before; a canary under Knative first loses its traffic."""
    service, before = held.service, held.record.before
    held.renew(_STEP)
    put_route_back(held)
    document = service.get()
    in_canary = "canaryTrafficPercent" in document["spec"].get("predictor", {})
    hold = in_canary and deployment_mode(document) == "Knative"
    written = held.write(restoring(service.kind, before, hold_traffic=hold))
    if hold:
        _release_traffic(held)
    elif left := unlike(before, written):
        held.say(f"{_STEP}: left as somebody else has set it meanwhile: {', '.join(left[:5])}")


def _release_traffic(held: Held) -> None:
    """Lets the restored revision have the traffic, once it is ready."""
    rollout = held.rollout
    try:
        wait_until_ready(held, _STEP, timeout=min(rollout.timeout, rollout.restore_seconds))
    except UnreachableError:
        raise
    except QuantlibError as error:
        held.say(f"all traffic stays on the revision before the canary: {error}")
    else:
        held.write(restoring(held.service.kind, held.record.before))


def _wait(held: Held, impatient: Event) -> tuple[str, bool]:
    """Waits until what was before answers; says what serves now, and whether it is that."""
    service, clock = held.service, held.rollout.clock
    uri, started = service.kind.state(held.record.before).uri, clock.monotonic()
    held.say(f"{_STEP}: asked for {uri} again; the pods that are ready answer until its own are")
    try:
        wait_until_ready(held, _STEP, enough=impatient.is_set)
    except (LostError, UnreachableError):
        raise
    except QuantlibError as error:
        return f"{service} is to serve {uri} again, and does not answer with it yet: {error}", False
    return f"{service} serves {uri} again, after {clock.monotonic() - started:.0f} s", True


@contextmanager
def _undisturbed(say: Say) -> Iterator[Event]:
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
