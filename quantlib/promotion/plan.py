"""What a promotion is going to do to a service, found out before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from quantlib.errors import InvalidInputError, Problem
from quantlib.promotion.cluster import Service
from quantlib.promotion.kinds import Document
from quantlib.promotion.merging import merged
from quantlib.promotion.readiness import look
from quantlib.promotion.record import Record
from quantlib.promotion.rollout import (
    Change,
    Step,
    can_have_a_canary,
    deployment_mode,
    foreign_canary,
    require_canary,
    steps_of,
    workload_name,
)
from quantlib.promotion.routes import require_route
from quantlib.promotion.server import Server, ServerError, at_url, reachability
from quantlib.promotion.share import Fingerprint, take_fingerprint
from quantlib.promotion.state import State
from quantlib.promotion.verified_start import verified_spec, verifies
from quantlib.promotion.waiting import Rollout


@dataclass(frozen=True)
class Questions:
    """What the servers are asked.

    Attributes:
        test: Asks the server; says what it found, or raises.
        prompts: Tokens that tell one checkpoint from another by how they go on.
    """

    test: Callable[[Server], str]
    prompts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Situation:
    """What a promotion finds.

    Attributes:
        service: The service.
        document: As it is now.
        before: As it was before the promotion, which may have been begun by another process.
        wanted: What it is to serve.
        record: Of the promotion that is gone on with; None for a new one.
        rollout: How it is to go over.
        questions: What the servers are asked; None for nothing.
        verify_on_start: Whether pods verify their copy; None for where the cluster can.
    """

    service: Service
    document: Document
    before: Document
    wanted: State
    record: Record | None
    rollout: Rollout
    questions: Questions | None
    verify_on_start: bool | None


@dataclass(frozen=True)
class Plan:
    """What is going to be done.

    Attributes:
        steps: One after the other.
        server: Where the service answers; None where nobody asks.
        canary: Where the new checkpoint alone answers while it is beside the other.
        route: The HTTPRoute before anything was changed; None without one.
        stable: How what serves now answers; None where no shares are measured.
        remark: What a person has to know of it.
    """

    steps: list[Step]
    server: Server | None = None
    canary: Server | None = None
    route: Document | None = None
    stable: Fingerprint | None = None
    remark: str = ""


def plan_of(situation: Situation, problems: list[Problem]) -> Plan:
    """What to do.

    Args:
        situation: What was found.
        problems: What speaks against it already.

    Raises:
        InvalidInputError: With everything that speaks against it.
    """
    record, questions = situation.record, situation.questions
    problems = list(problems)
    if record is None and foreign_canary(situation.document):
        problems.append(
            Problem(str(situation.service), "it has a canary that is not ours", "let it end first")
        )
    plan = Plan([])
    try:
        if situation.rollout.percents:
            require_canary(situation.document)
        plan, found = _servers(situation)
        problems += found
        plan = _with_steps(situation, plan)
    except InvalidInputError as error:
        problems += error.problems
    if problems:
        raise InvalidInputError(problems)
    names = [step.name for step in plan.steps]
    if record and record.step in names:
        plan = replace(plan, steps=plan.steps[names.index(record.step) :])
    if questions and any(step.is_canary and step.percent for step in plan.steps):
        plan = replace(plan, stable=_stable(situation, plan, questions))
    return plan


def serving(situation: Situation) -> Change:
    """What makes of a service one that serves the checkpoint, verified on start where asked.

    Raises:
        InvalidInputError: Its pods cannot verify it.
    """
    kind, wanted = situation.service.kind, situation.wanted
    installed = situation.service.storage_container()
    chosen = situation.verify_on_start
    uri, digest = wanted.uri or "", wanted.digest or ""

    def verified(document: Document) -> Document:
        return {"spec": verified_spec(kind.name, document, uri, digest, installed)}

    verify = chosen or (chosen is None and verifies(kind.name, situation.before))
    if verify:
        verified(situation.before)
    elif chosen is None and installed is not None:
        try:
            verified(situation.before)
            verify = True
        except InvalidInputError:  # it is for other addresses
            pass

    def change(document: Document) -> Document:
        changed = kind.changed(document, wanted)
        if not verify:
            return changed
        laid: Document = merged(changed, verified(changed), by_name=False)
        return laid

    return change


def _servers(situation: Situation) -> tuple[Plan, list[Problem]]:
    """Who is asked; that the service answers there is seen before anything is changed."""
    service, document, rollout = situation.service, situation.document, situation.rollout
    if situation.questions is None:
        return Plan([]), []
    second = workload_name(document, canary=True)
    canary = at_url(rollout.canary_url) if rollout.canary_url else None
    if canary is None and second and can_have_a_canary(document) and service.may_ask(second):
        canary = service.behind(second)
    server, failures = answering(service, document, rollout)
    # What does not serve now, or is on its way, need not answer yet.
    if not failures or situation.record or look(service, document).state != "ready":
        return Plan([], server, canary), []
    remedy = "say with --url where it does, or leave the test out with --no-smoke-test"
    what = f"it is ready, but does not answer from here: {'; '.join(failures)}"
    return Plan([], server, canary), [Problem(str(service), what, remedy)]


def answering(
    service: Service, document: Document, rollout: Rollout
) -> tuple[Server | None, list[str]]:
    """Where a service answers from here: the first address that does; why the others do not.

    Where none does, the first one, if there is any.
    """
    name = workload_name(document)
    told = rollout.url or (document.get("status") or {}).get("url")
    servers = [at_url(told)] if told else []
    if name and service.kind.name == "InferenceService" and not rollout.url:
        servers += [service.behind(name)] if service.may_ask(name) else []
    failures = [] if servers else ["its status names no URL"]
    for server in servers:
        try:
            reachability(server)
            return server, []
        except ServerError as error:
            failures.append(str(error))
    return (servers[0] if servers else None), failures


def _with_steps(situation: Situation, plan: Plan) -> Plan:
    """The steps, each tried out on the API server."""
    service, before, rollout = situation.service, situation.before, situation.rollout
    asked, questions = bool(rollout.percents), situation.questions
    why_not = _why_no_canary(situation, plan)
    if asked and why_not:
        raise InvalidInputError.one("--canary", *why_not)
    if rollout.route:
        begun = situation.record and situation.record.route_document
        route = begun or service.route(rollout.route)
        require_route(route, before, can_share=asked and can_have_a_canary(before))
        plan = replace(plan, route=route)
    serve = serving(situation)
    dark = can_have_a_canary(before) and not why_not
    dark = dark and (asked or (questions is not None and not rollout.in_place))

    def tried(dark: bool) -> list[Step]:
        split = plan.route is not None
        steps = steps_of(before, serve, rollout.percents, dark=dark, split=split)
        for step in steps:
            service.change(situation.document, step.change(situation.document), dry_run=True)
        return steps

    try:
        steps = tried(dark)
    except InvalidInputError as error:
        if asked or not dark:
            raise
        dark, why_not = False, (error.problems[0].what, "")
        steps = tried(dark)
    remark = ""
    if questions and not dark and deployment_mode(before) != "Knative":
        chosen = "--in-place" if rollout.in_place else (why_not or ("it has no canary",))[0]
        remark = f"new pods are tested while they answer users already ({chosen})"
    if asked and dark and plan.route is None:
        remark = (
            "a dark launch: KServe gives a canary in Standard mode no traffic, and no route that "
            "would was named with --route"
        )
    return replace(plan, steps=steps, remark=remark)


def _why_no_canary(situation: Situation, plan: Plan) -> tuple[str, str] | None:
    """Why new pods cannot stand beside those that serve, and what would help."""
    before, kind = situation.before, situation.service.kind
    if can_have_a_canary(before):
        if kind.state(before).arguments and not situation.wanted.arguments:
            return "KServe would give a canary without arguments those of the service", ""
        if situation.questions and plan.canary is None:
            return (
                "the account may not ask the canary's Service through the API server",
                "say with --canary-url where it answers, or use the account of manifests/base",
            )
    elif situation.rollout.percents and situation.questions and plan.canary is None:
        return (
            "the service's own URL answers with both checkpoints by turns",
            "say with --canary-url where the new one alone answers, or --no-smoke-test",
        )
    return None


def _stable(situation: Situation, plan: Plan, questions: Questions) -> Fingerprint | None:
    """How what serves now answers, asked where no canary does."""
    name = workload_name(situation.document)
    if name and situation.service.may_ask(name):
        return take_fingerprint(situation.service.behind(name), questions.prompts)
    if situation.record or plan.server is None:
        return None  # both may answer there by now
    return take_fingerprint(plan.server, questions.prompts)
