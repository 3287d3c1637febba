"""Promotion on the cluster itself: step by step, each tested, and back where one fails."""

from __future__ import annotations

import json

from quantlib.errors import InvalidInputError, Problem, QuantlibError
from quantlib.promotion.checks import Allowances, managed_problems, problems_of
from quantlib.promotion.cluster import Service
from quantlib.promotion.merging import Document
from quantlib.promotion.plan import Plan, answering
from quantlib.promotion.readiness import wait_until_ready
from quantlib.promotion.record import BEFORE, Held, LostError, Record, record_of
from quantlib.promotion.restoring import put_route_back, restore
from quantlib.promotion.rollout import Rollout, Say, Step, deployment_mode, weighed
from quantlib.promotion.runtimes import Runtime, runtime_of, runtime_problems
from quantlib.promotion.share import Fingerprint, measure_share, take_fingerprint
from quantlib.promotion.smoke import Expected, smoke_test
from quantlib.promotion.state import short, successor
from quantlib.publishing.verification import Verified
from quantlib.serving.client import Server, ServerError

_SHARE_SECONDS = 60.0
"""How long a route may take until it splits traffic as it was asked to."""


def promote_directly(
    published: Verified,
    storage_uri: str,
    service: Service,
    rollout: Rollout,
    allowances: Allowances,
    expected: Expected | None,
    say: Say,
) -> str:
    """Lets a service serve a checkpoint, and restores what was there where that fails.

    ``expected`` is what is asked after each step, if anything; ``say`` is told what happens.

    Returns:
        What was done, in a sentence.

    Raises:
        InvalidInputError: With everything that speaks against it; nothing was changed.
        QuantlibError: It failed; the message says what the service serves now.
    """
    clock, kind = rollout.clock, service.kind
    document, notes = service.get(), service.notes()
    uid = document["metadata"]["uid"]
    if record := record_of(notes, uid):
        record.require_abandoned(service, published.digest, clock)
    before = record.before if record else document
    before = {**before, "status": document.get("status") or {}}
    previous = kind.state(before)
    if record is None and previous.serves(published, storage_uri):
        return f"{service} serves {published.digest} already"
    began = record.began if record else clock.stamp()
    wanted = successor(previous, published, storage_uri, kind.name, began)
    runtime, problems = _runtime(service, document)
    problems += problems_of(published, previous, lambda: runtime, allowances)
    problems += managed_problems(document, allowances)
    plan = Plan(service, document, before, wanted, record, rollout, expected)
    plan.make(problems)
    mine = Record(
        uid=uid,
        digest=published.digest,
        step=record.step if record else "begins",
        began=began,
        renewed=clock.utc(),
        before=before,
        route=plan.route,
    )
    held = Held(service, mine, rollout, say)
    step = plan.steps[0].name
    try:
        held.begin(document, notes)
        gone_on_with = f", gone on with at: {step}" if record else ""
        story = f"{previous.uri} -> {storage_uri}{gone_on_with}"
        held.tell(document, "PromotionStarted", story)
        if plan.remark:
            say(plan.remark)
        for each in plan.steps:
            step = each.name
            _take_step(held, each, plan)
        story = f"promoted {short(published.digest)}, which replaces {previous.uri}"
        held.finish(story, {BEFORE: json.dumps(mine.before)})
    except LostError:
        raise
    except BaseException as error:  # a mistake of ours must not leave it half way either
        reason = _reason(error, step)
        outcome = restore(held, reason)
        if isinstance(error, QuantlibError):
            raise QuantlibError(f"{reason}\n{outcome}") from None
        say(outcome)
        raise
    held.tell(document, "Promoted", story)
    return f"{service}: {story}"


def _take_step(held: Held, step: Step, plan: Plan) -> None:
    service, say, expected = held.service, held.say, plan.expected
    held.renew(step.name)
    say(f"{step.name}: applying")
    if not step.is_canary:
        put_route_back(held)
    held.write(step.change)
    beside = step.is_canary and deployment_mode(service.get()) != "Knative"
    document = wait_until_ready(held, step.name, canary=beside)
    found = "ready"
    if expected is not None:
        found = _tested(held, step, plan, document, expected) or found
    if step.percent and (route := held.record.route):
        change = weighed(route, document, step.percent)
        held.write(change, service.route_path(route["metadata"]["name"]))
    if step.percent and expected and plan.stable is not None and plan.canary and plan.server:
        canary = take_fingerprint(plan.canary, expected.distinguishing)
        found += f"; {_share(held.rollout, plan.server, plan.stable, canary, step.percent)}"
    held.tell(document, "PromotionStep", f"{step.name}: {found}")


def _tested(
    held: Held, step: Step, plan: Plan, document: Document, expected: Expected
) -> str | None:
    """What the smoke test found, where the new checkpoint answers now; None where nobody asks."""
    if step.is_canary:
        return smoke_test(plan.canary, expected) if plan.canary else None
    service, clock = held.service, held.rollout.clock
    server, failures = answering(service, document, held.rollout.url)
    if server is None:
        raise QuantlibError(f"{service}: cannot be tested: {'; '.join(failures)}")
    began = clock.monotonic()
    try:
        return smoke_test(server, expected)
    except QuantlibError as error:
        seconds = clock.monotonic() - began
        raise QuantlibError(f"{error}; it answered users for {seconds:.0f} s or more") from None


def _share(
    rollout: Rollout, server: Server, stable: Fingerprint, canary: Fingerprint, percent: int
) -> str:
    """Measures a share until it is as asked, for a while."""
    clock = rollout.clock
    deadline = clock.monotonic() + _SHARE_SECONDS
    while True:
        try:
            share = measure_share(server, stable, canary, percent)
            if share.as_asked:
                return str(share)
            said = str(share)
        except ServerError as error:  # the route is in the making
            said = str(error)
        if clock.monotonic() > deadline:
            raise QuantlibError(f"the traffic is not shared as asked: {said}")
        clock.sleep(rollout.poll_seconds)


def _runtime(service: Service, document: Document) -> tuple[Runtime, list[Problem]]:
    try:
        levels = list(service.runtimes())
    except InvalidInputError as error:
        return Runtime(None, "; ".join(problem.what for problem in error.problems)), []
    runtime = runtime_of(service.kind, document, levels, complete=True)
    return runtime, list(runtime_problems(document, levels))


def _reason(error: BaseException, step: str) -> str:
    """Why a promotion failed, for its story."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return f"interrupted at the step: {step}"
    said = str(error) if isinstance(error, QuantlibError) else repr(error)
    return " ".join(said.split())
