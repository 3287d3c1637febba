"""Promotion on the cluster itself: step by step, each tested, and back where one fails."""

from __future__ import annotations

from dataclasses import replace

from quantlib.errors import InvalidInputError, Problem, QuantlibError
from quantlib.promotion import record as records
from quantlib.promotion.checks import Allowances, managed_problems, problems_of
from quantlib.promotion.clock import Clock
from quantlib.promotion.cluster import Service
from quantlib.promotion.description import arguments_for
from quantlib.promotion.kinds import Document
from quantlib.promotion.plan import Plan, Questions, Situation, answering, plan_of
from quantlib.promotion.published import Published, short
from quantlib.promotion.record import LostError, Record, record_of, require_free, snapshot
from quantlib.promotion.restoring import put_route_back, restore, tell
from quantlib.promotion.rollout import Step, deployment_mode
from quantlib.promotion.routes import weighed
from quantlib.promotion.runtimes import Runtime, runtime_of, runtime_problems
from quantlib.promotion.server import Server, ServerError
from quantlib.promotion.share import Fingerprint, measure_share, take_fingerprint
from quantlib.promotion.state import PROMOTED_AT, successor
from quantlib.promotion.waiting import Rollout, Say, wait_until_ready

_SHARE_SECONDS = 60.0
"""How long a route may take until it splits traffic as it was asked to."""


def promote_directly(
    published: Published,
    storage_uri: str,
    service: Service,
    rollout: Rollout,
    allowances: Allowances,
    questions: Questions | None,
    say: Say,
    *,
    verify_on_start: bool | None = None,
) -> str:
    """Lets a service serve a checkpoint, and restores what was there where that fails.

    Args:
        published: The checkpoint.
        storage_uri: Where the service finds it.
        service: The service.
        rollout: How it goes over.
        allowances: What is let pass.
        questions: What is asked after each step; None for no test.
        say: Told what happens.
        verify_on_start: Whether pods verify their copy before vLLM starts; None for where the
            cluster has what that takes.

    Returns:
        What was done, in a sentence.

    Raises:
        InvalidInputError: With everything that speaks against it; nothing was changed.
        QuantlibError: It failed; the message says what the service serves now.
    """
    clock = rollout.clock
    document, notes = service.get(), service.notes()
    uid = document["metadata"]["uid"]
    record = record_of(notes, uid)
    require_free(service, record, published.digest, clock)
    before = record.document if record else document
    before = {**before, "status": document.get("status") or {}}
    previous = service.kind.state(before)
    if record is None and (previous.digest, previous.uri) == (published.digest, storage_uri):
        return f"{service} serves {published.digest} already"
    began = record.began if record else clock.stamp()
    wanted = successor(
        previous, published, storage_uri, arguments_for(published, service.kind, storage_uri)
    )
    wanted = replace(wanted, annotations={**wanted.annotations, PROMOTED_AT: began})
    found, problems = _runtime(service, document)
    problems += problems_of(published, previous, lambda: found, allowances)
    problems += managed_problems(document, allowances)
    situation = Situation(
        service, document, before, wanted, record, rollout, questions, verify_on_start
    )
    plan = plan_of(situation, problems)
    mine = Record(
        records.new_holder(),
        uid,
        published.digest,
        record.step if record else "begins",
        began,
        clock.stamp(),
        snapshot(before),
        snapshot(plan.route) if plan.route else None,
    )
    step = plan.steps[0].name
    try:
        records.take(service, document, notes, mine)
        story = f"{previous.uri} -> {storage_uri}"
        if record:
            story += f", gone on with at: {plan.steps[0].name}"
        tell(service, document, "PromotionStarted", story, say)
        if plan.remark:
            say(plan.remark)
        for each in plan.steps:
            step = each.name
            _take_step(service, mine, each, plan, rollout, questions, say)
        story = f"promoted {short(published.digest)}, which replaces {previous.uri}"
        records.finish(service, mine, story, clock, {records.BEFORE: mine.before})
    except LostError:
        raise
    except BaseException as error:  # a mistake of ours must not leave it half way either
        reason = _reason(error, step)
        outcome = restore(service, mine, reason, rollout, say)
        if isinstance(error, QuantlibError):
            raise QuantlibError(f"{reason}\n{outcome}") from None
        say(outcome)
        raise
    tell(service, document, "Promoted", story, say)
    return f"{service}: {story}"


def _take_step(
    service: Service,
    mine: Record,
    step: Step,
    plan: Plan,
    rollout: Rollout,
    questions: Questions | None,
    say: Say,
) -> None:
    clock = rollout.clock
    mine = records.renew(service, mine, step.name, clock)
    say(f"{step.name}: applying")
    if not step.is_canary:
        put_route_back(service, mine, rollout)
    records.write(service, mine, step.change, clock)
    beside = step.is_canary and deployment_mode(service.get()) != "Knative"
    document = wait_until_ready(service, mine, step.name, rollout, say, canary=beside)
    found = "ready"
    server = plan.canary
    if questions is not None and not step.is_canary:
        server, failures = answering(service, document, rollout)
        if server is None:
            raise QuantlibError(f"{service}: cannot be tested: {'; '.join(failures)}")
    if questions is not None and server is not None:
        began = clock.monotonic()
        try:
            found = questions.test(server)
        except QuantlibError as error:
            if step.is_canary:
                raise
            seconds = clock.monotonic() - began
            raise QuantlibError(f"{error}; it answered users for {seconds:.0f} s or more") from None
    if step.percent and plan.route is not None:
        _weigh(service, mine, step.percent, document, clock)
    if step.percent and questions and plan.stable and plan.canary and plan.server:
        canary = take_fingerprint(plan.canary, questions.prompts)
        found += f"; {_share(plan.server, plan.stable, canary, step.percent, rollout)}"
    tell(service, document, "PromotionStep", f"{step.name}: {found}", say)


def _weigh(service: Service, mine: Record, percent: int, document: Document, clock: Clock) -> None:
    route = mine.route_document
    assert route is not None

    def change(found: Document) -> Document:
        return weighed(found, route, document, percent)

    records.write(service, mine, change, clock, route=route["metadata"]["name"])


def _share(
    server: Server, stable: Fingerprint, canary: Fingerprint, percent: int, rollout: Rollout
) -> str:
    """Measures a share until it is as asked.

    Raises:
        QuantlibError: It never is.
    """
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
    problems = runtime_problems(document, levels)
    return runtime_of(service.kind, document, levels, complete=True), problems


def _reason(error: BaseException, step: str) -> str:
    """Why a promotion failed, for its story."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return f"interrupted at the step: {step}"
    said = str(error) if isinstance(error, QuantlibError) else repr(error)
    return " ".join(said.split())
