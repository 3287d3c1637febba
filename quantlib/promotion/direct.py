"""Promotion on the cluster itself: step by step, each tested, and back where one fails."""

from __future__ import annotations

import json

from quantlib.errors import InvalidInputError, Problem, QuantlibError
from quantlib.promotion.checks import Allowances, managed_problems, problems_of
from quantlib.promotion.cluster import Service
from quantlib.promotion.merging import Document
from quantlib.promotion.plan import Plan, answering
from quantlib.promotion.readiness import wait_until_ready
from quantlib.promotion.record import BEFORE, Held, LostError, PromotionRecord, record_of
from quantlib.promotion.restoring import put_route_back, restore, take_canary_away
from quantlib.promotion.rollout import Rollout, Say, Step, deployment_mode, weighed
from quantlib.promotion.runtimes import Runtime, runtime_of, runtime_problems
from quantlib.promotion.share import settled_share, take_fingerprint
from quantlib.promotion.smoke import Expected, smoke_test
from quantlib.promotion.state import short, successor
from quantlib.publishing.verification import Verified


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
    document, notes = service.get(), service.lease()
    uid = document["metadata"]["uid"]
    if begun := record_of(notes, uid):
        begun.require_abandoned(service, published.digest, clock)
    before = (begun.before if begun else document) | {"status": document.get("status") or {}}
    previous = kind.state(before)
    if begun is None and previous.serves(published, storage_uri):
        return f"{service} serves {published.digest} already"
    began = begun.began if begun else clock.stamp()
    wanted = successor(previous, published, storage_uri, kind.name, began)
    runtime, problems = _runtime(service, document)
    problems += problems_of(published, previous, lambda: runtime, allowances)
    problems += managed_problems(document, allowances)
    plan = Plan(service, document, before, wanted, begun, rollout, expected)
    plan.make(problems)
    mine = PromotionRecord(
        uid=uid,
        digest=published.digest,
        step=begun.step if begun else "begins",
        began=began,
        renewed=clock.utc(),
        before=before,
        route=plan.route,
    )
    held = Held(service, mine, rollout, say)
    step = plan.steps[0].name
    try:
        held.begin(document, notes)
        gone_on_with = f", gone on with at: {step}" if begun else ""
        story = f"{previous.uri} -> {storage_uri}{gone_on_with}"
        held.announce(document, "PromotionStarted", story)
        if plan.remark:
            say(plan.remark)
        for each in plan.steps:
            step = each.name
            found = _taken(held, each, plan)
            held.announce(document, "PromotionStep", f"{step}: {found}")
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
    held.announce(document, "Promoted", story)
    return f"{service}: {story}"


def _taken(held: Held, step: Step, plan: Plan) -> str:
    """Takes a step, and says what was found then."""
    service, expected = held.service, plan.expected
    held.renew(step.name)
    held.say(f"{step.name}: applying")
    if not step.is_canary:
        put_route_back(held)
        take_canary_away(held)
    held.write(step.change)
    if step.beside:
        held.put_beside(step.beside)
    beside = step.is_canary and deployment_mode(plan.before) != "Knative"
    document = wait_until_ready(held, step.name, canary=beside)
    found = _tested(held, step, plan, document, expected) if expected else "ready"
    if step.percent and (route := held.record.route):
        change = weighed(route, document, step.percent)
        held.write(change, service.route_path(route["metadata"]["name"]))
    if step.percent and expected and plan.stable is not None and plan.canary and plan.shared:
        canary = take_fingerprint(plan.canary, expected.distinguishing)
        share = settled_share(plan.shared, plan.stable, canary, step.percent, held.rollout)
        found += f"; {share}"
    return found


def _tested(held: Held, step: Step, plan: Plan, document: Document, expected: Expected) -> str:
    """What the smoke test found, where the new checkpoint answers now, if anybody asks there."""
    if step.is_canary:
        return smoke_test(plan.canary, expected) if plan.canary else "ready"
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
