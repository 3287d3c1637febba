"""Back to what a service served before: where a promotion fails, and by hand."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion import record as records
from quantlib.promotion.api import UnreachableError
from quantlib.promotion.cluster import Service
from quantlib.promotion.kinds import Document
from quantlib.promotion.merging import unlike
from quantlib.promotion.published import short
from quantlib.promotion.record import LostError, Record, record_of, require_free, snapshot
from quantlib.promotion.rollout import deployment_mode, restoring
from quantlib.promotion.waiting import Rollout, Say, wait_until_ready

_STEP = "restoring"


class Patience:
    """Whether somebody who interrupts once more still waits."""

    def __init__(self) -> None:
        self.is_over = False

    def over(self) -> bool:
        """Whether it is over."""
        return self.is_over


def restore(service: Service, mine: Record, reason: str, rollout: Rollout, say: Say) -> str:
    """Restores what was there, waits until that answers, and says what became of it.

    Signals do not keep it from restoring; one more ends the waiting.

    Args:
        service: The service.
        mine: The promotion that failed.
        reason: Why, in one line.
        rollout: How long to wait.
        say: Told what happens.
    """
    with _undisturbed(say) as patience:
        return _restored(service, mine, reason, rollout, say, patience)


def _restored(
    service: Service, mine: Record, reason: str, rollout: Rollout, say: Say, patience: Patience
) -> str:
    clock = rollout.clock
    before = service.kind.state(mine.document)
    deadline = clock.monotonic() + rollout.restore_seconds
    while True:
        try:
            document, record = service.get(), record_of(service.notes(), mine.uid)
            if record is None or record.holder != mine.holder:
                served = service.kind.state(document).uri
                return f"nothing had to be restored: {service} serves {served}"
            _put_back(service, mine, rollout, say)
            outcome, answers = _wait(service, mine, rollout, say, patience)
            story = f"rolled back {short(mine.digest)} to {before.uri}: {reason}"
            records.finish(service, mine, story if answers else f"{story}; {outcome}", clock)
            tell(service, document, "RolledBack", story, say, warning=True)
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
            say(f"{_STEP}: {error}")
            clock.sleep(rollout.poll_seconds)


def roll_back(service: Service, rollout: Rollout, say: Say) -> str:
    """Restores what a service served before the last promotion, or before one that was abandoned.

    Args:
        service: The service.
        rollout: How long to wait.
        say: Told what happens.

    Raises:
        InvalidInputError: Nothing is known of a state before, or a promotion is under way.
        QuantlibError: The restored state does not get ready.
    """
    clock = rollout.clock
    document, notes = service.get(), service.notes()
    uid = document["metadata"]["uid"]
    record = record_of(notes, uid)
    current = service.kind.state(document)
    route, also = None, dict[str, str | None]()
    if record is not None:
        require_free(service, record, None, clock)
        before, route = record.before, record.route
    elif (known := records.before_last(notes, uid)) is not None:
        before, also = snapshot(known), {records.BEFORE: None}
    else:
        raise InvalidInputError.one(
            str(service), "no promotion of it is known, so there is nothing to go back to"
        )
    digest = service.kind.state(records.parsed(before)).digest or "by-hand"
    now = clock.stamp()
    mine = Record(records.new_holder(), uid, digest, "rollback", now, now, before, route)
    records.take(service, document, notes, mine)
    story = f"rolled back by hand from {current.uri} to {service.kind.state(mine.document).uri}"
    _put_back(service, mine, rollout, say)
    outcome, answers = _wait(service, mine, rollout, say, Patience())
    told = story if answers else f"{story}; {outcome}"
    records.finish(service, mine, told, clock, also)
    tell(service, document, "RolledBack", told, say, warning=not answers)
    if not answers:
        raise QuantlibError(outcome)
    return f"{service}: {story}"


def _put_back(service: Service, mine: Record, rollout: Rollout, say: Say) -> None:
    """Writes what was there before; a canary under Knative first loses its traffic."""
    records.renew(service, mine, _STEP, rollout.clock)
    put_route_back(service, mine, rollout)
    document = service.get()
    in_canary = "canaryTrafficPercent" in document["spec"].get("predictor", {})
    hold = in_canary and deployment_mode(document) == "Knative"
    change = restoring(service.kind, mine.document, hold_traffic=hold)
    written = records.write(service, mine, change, rollout.clock)
    if hold:
        _release_traffic(service, mine, rollout, say)
    elif left := unlike(mine.document, written):
        say(f"{_STEP}: left as somebody else has set it meanwhile: {', '.join(left[:5])}")


def put_route_back(service: Service, mine: Record, rollout: Rollout) -> None:
    """Lets a route's traffic go where it went before the promotion."""
    if (route := mine.route_document) is not None:
        name, rules = route["metadata"]["name"], route["spec"].get("rules")

        def change(document: Document) -> Document:
            return document | {"spec": document["spec"] | {"rules": rules}}

        records.write(service, mine, change, rollout.clock, route=name)


def _wait(
    service: Service, mine: Record, rollout: Rollout, say: Say, patience: Patience
) -> tuple[str, bool]:
    """Waits until what was before answers; says what serves now, and whether it is that."""
    uri, clock = service.kind.state(mine.document).uri, rollout.clock
    started = clock.monotonic()
    say(f"{_STEP}: asked for {uri} again; the pods that are ready answer until its own are")
    try:
        wait_until_ready(service, mine, _STEP, rollout, say, enough=patience.over)
    except (LostError, UnreachableError):
        raise
    except QuantlibError as error:
        return f"{service} is to serve {uri} again, and does not answer with it yet: {error}", False
    return f"{service} serves {uri} again, after {clock.monotonic() - started:.0f} s", True


def _release_traffic(service: Service, mine: Record, rollout: Rollout, say: Say) -> None:
    """Lets the restored revision have the traffic, once it is ready."""
    limited = replace(rollout, timeout=min(rollout.timeout, rollout.restore_seconds))
    try:
        wait_until_ready(service, mine, _STEP, limited, say)
    except UnreachableError:
        raise
    except QuantlibError as error:
        say(f"all traffic stays on the revision before the canary: {error}")
        return
    records.write(service, mine, restoring(service.kind, mine.document), rollout.clock)


def tell(
    service: Service,
    document: Document,
    reason: str,
    message: str,
    say: Say,
    *,
    warning: bool = False,
) -> None:
    """Says it here and in an event, in one line; what cannot be told there hinders nothing."""
    line = " ".join(message.split())
    say(line)
    try:
        service.tell(document, reason, line, warning=warning)
    except QuantlibError as error:
        say(f"no event was left: {error}")


@contextmanager
def _undisturbed(say: Say) -> Iterator[Patience]:
    """Keeps further signals from cutting the restoration short; they end its waiting."""
    patience = Patience()

    def note(*_: object) -> None:
        patience.is_over = True
        say(f"{_STEP}: what was before is written back first; nobody waits for its pods then")

    before = {}
    with suppress(ValueError):  # not the main thread, which alone gets signals
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield patience
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
