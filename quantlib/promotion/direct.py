"""Promotion on the cluster itself: step by step, each tested, and back where one fails."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from quantlib.errors import InvalidInputError, Problem, QuantlibError
from quantlib.promotion import record as records
from quantlib.promotion.checks import Allowances, problems_of
from quantlib.promotion.clock import SYSTEM_CLOCK, Clock
from quantlib.promotion.cluster import Service, UnreachableError
from quantlib.promotion.description import arguments_for
from quantlib.promotion.kinds import Document
from quantlib.promotion.published import Published, short
from quantlib.promotion.readiness import SETTLE_SECONDS, readiness
from quantlib.promotion.record import LostError, Record, record_of
from quantlib.promotion.rollout import Step, deployment_mode, foreign_canary, restoring, steps_of
from quantlib.promotion.runtimes import Runtime, runtime_of
from quantlib.promotion.state import PREVIOUS, PROMOTED_AT, State, successor

Say = Callable[[str], None]
SmokeTest = Callable[[str], str]
"""Asks the server at a URL; says what it found, or raises."""


@dataclass(frozen=True)
class Rollout:
    """How a service goes over.

    Attributes:
        percents: Of the traffic, for the canary; none to go over at once.
        url: Where the service answers; None for what its status says.
        canary_url: Where the new checkpoint alone answers while it is a canary.
        timeout: Seconds that each step gets to be ready.
        restore_seconds: How long to try to restore while the API server does not answer.
        poll_seconds: Between looks.
        settle_seconds: See :data:`quantlib.promotion.readiness.SETTLE_SECONDS`.
        clock: By which all this is measured.
    """

    percents: tuple[int, ...] = ()
    url: str | None = None
    canary_url: str | None = None
    timeout: float = 1800.0
    restore_seconds: float = 120.0
    poll_seconds: float = 2.0
    settle_seconds: float = SETTLE_SECONDS
    clock: Clock = SYSTEM_CLOCK


def promote_directly(
    published: Published,
    storage_uri: str,
    service: Service,
    rollout: Rollout,
    allowances: Allowances,
    smoke_test: SmokeTest | None,
    say: Say,
) -> str:
    """Lets a service serve a checkpoint, and restores what was there where that fails.

    Args:
        published: The checkpoint.
        storage_uri: Where the service finds it.
        service: The service.
        rollout: How it goes over.
        allowances: What is let pass.
        smoke_test: Tried after each step; None for no test.
        say: Told what happens.

    Returns:
        What was done, in a sentence.

    Raises:
        InvalidInputError: With everything that speaks against it; nothing was changed.
        QuantlibError: It failed; the message says what the service serves now.
    """
    clock = rollout.clock
    document, notes = service.get(), service.notes()
    record = record_of(notes)
    _require_free(service, record, published.digest, clock)
    previous = record.state if record else service.kind.state(document)
    if record is None and (previous.digest, previous.uri) == (published.digest, storage_uri):
        return f"{service} serves {published.digest} already"
    arguments = arguments_for(published, service.kind, storage_uri)
    wanted = successor(previous, published, storage_uri, arguments)
    wanted = replace(wanted, annotations={**wanted.annotations, PROMOTED_AT: clock.stamp()})
    steps = _checked_steps(
        published, service, document, record, previous, wanted, rollout, allowances, smoke_test
    )
    mine = Record(
        records.new_holder(), published.digest, "begins", clock.stamp(), previous.to_json()
    )
    try:
        records.take(service, notes, mine)
        _tell(service, document, "PromotionStarted", f"{previous.uri} -> {storage_uri}", say)
        for step in steps:
            _take_step(service, mine, step, rollout, smoke_test, say)
        story = f"promoted {short(published.digest)}, which replaces {previous.uri}"
        records.finish(service, mine, story, clock)
    except LostError:
        raise
    except BaseException as error:  # a mistake of ours must not leave it half way either
        reason = _reason(error)
        with _undisturbed(say):
            outcome = _restore(service, mine, reason, rollout, say)
        if isinstance(error, QuantlibError):
            raise QuantlibError(f"{reason}\n{outcome}") from None
        say(outcome)
        raise
    _tell(service, document, "Promoted", story, say)
    return f"{service}: {story}"


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
    record = record_of(notes)
    current = service.kind.state(document)
    if record is not None:
        _require_free(service, record, None, clock)
        previous = record.state
    elif text := current.annotations.get(PREVIOUS):
        previous = State.from_json(text)
    else:
        raise InvalidInputError.one(
            str(service), "no promotion of it is known, so there is nothing to go back to"
        )
    mine = Record(
        records.new_holder(),
        previous.digest or "by-hand",
        "rollback",
        clock.stamp(),
        previous.to_json(),
    )
    records.take(service, notes, mine)
    story = f"rolled back by hand from {current.uri} to {previous.uri}"
    _apply_previous(service, mine, rollout, say)
    try:
        _wait_until_ready(service, mine, Step("restored", {}), rollout, say)
    except (LostError, UnreachableError):
        raise
    except QuantlibError as error:
        records.finish(service, mine, f"{story}: {error}", clock)
        _tell(service, document, "RolledBack", f"{story}: {error}", say, warning=True)
        raise
    records.finish(service, mine, story, clock)
    _tell(service, document, "RolledBack", story, say)
    return f"{service}: {story}"


def _require_free(
    service: Service, record: Record | None, digest: str | None, clock: Clock
) -> None:
    if record is None:
        return
    if not record.abandoned(clock):
        raise QuantlibError(
            f"{service}: {record} is under way; wait for it, or stop it where it runs"
        )
    if digest is not None and record.digest != digest:
        raise InvalidInputError.one(
            str(service),
            f"{record} was abandoned",
            f"promote {short(record.digest)} again to go on with it, or `quantlib rollback` first",
        )


def _checked_steps(
    published: Published,
    service: Service,
    document: Document,
    record: Record | None,
    previous: State,
    wanted: State,
    rollout: Rollout,
    allowances: Allowances,
    smoke_test: SmokeTest | None,
) -> list[Step]:
    """The steps; or every refusal at once."""
    problems = problems_of(published, previous, lambda: _runtime(service, document), allowances)
    steps: list[Step] = []
    if rollout.percents and smoke_test and not rollout.canary_url:
        problems.append(
            Problem(
                "--canary",
                "the service's own URL answers with both checkpoints by turns",
                "say with --canary-url where the new one alone answers, or --no-smoke-test",
            )
        )
    if record is None and foreign_canary(document):
        problems.append(
            Problem(str(service), "it has a canary that is not ours", "let it end first")
        )
    try:
        steps = steps_of(service.kind, document, previous, wanted, rollout.percents)
        for step in steps:
            service.try_out(step.patch)
    except InvalidInputError as error:
        problems += error.problems
    if problems:
        raise InvalidInputError(problems)
    return steps


def _runtime(service: Service, document: Document) -> Runtime:
    try:
        return runtime_of(service.kind, document, service.runtimes(), complete=True)
    except InvalidInputError as error:
        return Runtime(None, "; ".join(problem.what for problem in error.problems))


def _take_step(
    service: Service,
    mine: Record,
    step: Step,
    rollout: Rollout,
    smoke_test: SmokeTest | None,
    say: Say,
) -> None:
    clock = rollout.clock
    say(f"{step.name}: applying")
    mine = records.renew(service, mine, step.name, clock)
    document = records.apply(service, mine, step.patch, clock)
    document = _wait_until_ready(service, mine, step, rollout, say)
    found = "ready"
    if smoke_test is not None:
        url = rollout.canary_url if step.is_canary else rollout.url
        url = url or (document.get("status") or {}).get("url")
        if not url:
            raise QuantlibError(
                f"{service}: its status names no URL to test; say it with --url, or leave the test "
                "out with --no-smoke-test"
            )
        found = smoke_test(url)
    _tell(service, document, "PromotionStep", f"{step.name}: {found}", say)


def _wait_until_ready(
    service: Service, mine: Record, step: Step, rollout: Rollout, say: Say
) -> Document:
    clock = rollout.clock
    started = renewed = clock.monotonic()
    ready_since: float | None = None
    reason = ""
    while clock.monotonic() - started < rollout.timeout:
        try:
            # In this order: where the service answers is to be as new as its pods.
            workload = service.workload(service.get())
            document = service.get()
            if clock.monotonic() - renewed > records.STALE.total_seconds() / 4:
                records.renew(service, mine, step.name, clock)
                renewed = clock.monotonic()
        except UnreachableError as error:
            reason = str(error)
            clock.sleep(rollout.poll_seconds)
            continue
        seen = readiness(document, step.waits_for, workload)
        if seen.state == "failed":
            raise QuantlibError(f"{service}: {step.name}: {seen.reason}")
        if seen.state == "ready":
            if ready_since is None:
                ready_since = clock.monotonic()
            if seen.certain or clock.monotonic() - ready_since >= rollout.settle_seconds:
                return document
        else:
            ready_since = None
            if seen.reason != reason:
                say(f"{step.name}: {seen.reason}")
        reason = seen.reason or reason
        clock.sleep(rollout.poll_seconds)
    raise QuantlibError(
        f"{service}: {step.name}: not ready after {rollout.timeout:.0f} s: {reason}"
    )


def _reason(error: BaseException) -> str:
    """Why a promotion failed, for its story."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    return str(error) if isinstance(error, QuantlibError) else repr(error)


def _restore(service: Service, mine: Record, reason: str, rollout: Rollout, say: Say) -> str:
    """Restores what was there; says what became of it."""
    clock = rollout.clock
    previous = mine.state
    deadline = clock.monotonic() + rollout.restore_seconds
    while True:
        try:
            document, record = service.get(), record_of(service.notes())
            if record is None or record.holder != mine.holder:
                served = service.kind.state(document).uri
                return f"nothing had to be restored: {service} serves {served}"
            _apply_previous(service, mine, rollout, say)
            story = f"rolled back {short(mine.digest)} to {previous.uri}: {reason}"
            records.finish(service, mine, story, clock)
            _tell(service, document, "RolledBack", story, say, warning=True)
            return f"{service} serves {previous.uri} as before"
        except LostError:
            return f"{service}: somebody else promotes now; nothing more was done"
        except QuantlibError as error:
            if not isinstance(error, UnreachableError) or clock.monotonic() > deadline:
                return (
                    f"{service} could not be restored: {error}; it may serve either checkpoint. "
                    f"When that is mended, `quantlib rollback --service {service.name} "
                    f"--namespace {service.namespace}` restores {previous.uri}"
                )
            say(f"restoring: {error}")
            clock.sleep(rollout.poll_seconds)


def _apply_previous(service: Service, mine: Record, rollout: Rollout, say: Say) -> None:
    """Applies the state from before; a canary under Knative first loses its traffic."""
    document = service.get()
    in_canary = "canaryTrafficPercent" in document["spec"].get("predictor", {})
    hold = in_canary and deployment_mode(document) == "Knative"
    patch = restoring(service.kind, document, mine.state, hold_traffic=hold)
    records.apply(service, mine, patch, rollout.clock)
    if hold:
        _release_traffic(service, mine, rollout, say)


def _release_traffic(service: Service, mine: Record, rollout: Rollout, say: Say) -> None:
    """Lets the restored revision have the traffic, once it is ready."""
    limited = replace(rollout, timeout=min(rollout.timeout, rollout.restore_seconds))
    try:
        document = _wait_until_ready(service, mine, Step("restored", {}), limited, say)
    except UnreachableError:
        raise
    except QuantlibError as error:
        say(f"all traffic stays on the revision before the canary: {error}")
        return
    records.apply(service, mine, restoring(service.kind, document, mine.state), rollout.clock)


def _tell(
    service: Service,
    document: Document,
    reason: str,
    message: str,
    say: Say,
    *,
    warning: bool = False,
) -> None:
    """Says it here and in an event; what cannot be told there hinders nothing."""
    say(message)
    try:
        service.tell(document, reason, message, warning=warning)
    except QuantlibError as error:
        say(f"no event was left: {error}")


@contextmanager
def _undisturbed(say: Say) -> Iterator[None]:
    """Keeps further signals from cutting the restoration short."""
    before = {}
    with suppress(ValueError):  # not the main thread, which alone gets signals
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda *_: say("restoring; a moment"))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
