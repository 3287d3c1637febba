"""What a promotion is going to do to a service, found out before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from quantlib.errors import InvalidInputError, Problem
from quantlib.promotion.cluster import Service
from quantlib.promotion.llm_canary import KIND as LLM
from quantlib.promotion.llm_canary import shared_url, why_no_share
from quantlib.promotion.merging import Document
from quantlib.promotion.readiness import look
from quantlib.promotion.record import PromotionRecord
from quantlib.promotion.rollout import (
    Change,
    Rollout,
    Step,
    can_have_a_canary,
    deployment_mode,
    foreign_canary,
    has_second_predictor,
    in_cluster_name,
    require_canary,
    require_route,
    steps_of,
)
from quantlib.promotion.share import Fingerprint, take_fingerprint
from quantlib.promotion.smoke import Expected
from quantlib.promotion.state import State
from quantlib.promotion.verified_start import verified, verifies
from quantlib.serving.client import Server, ServerError, at_url

_NO_ROUTE = (
    "KServe gives a canary in Standard mode no traffic, and no route that would was named with "
    "--route"
)
_LONGEST = 63
"""What KServe calls longer than a Service's name may be, it calls by another one."""

_SECONDS = 10.0
"""What answers now answers that it does within so long."""


@dataclass
class Plan:
    """What a promotion finds, and what it is going to do.

    Attributes:
        document: The service as it is now.
        before: As it was before the promotion, which may have been begun by another process.
        wanted: What it is to serve.
        begun: The promotion that is gone on with; None for a new one.
        expected: What the servers are asked; None for nothing.
        server: Where the service answers; None where nobody asks.
        shared: Where the traffic comes in that a canary gets its share of; None as well.
        canary: Where the new checkpoint alone answers while it is beside the other.
        route: The HTTPRoute before anything was changed; None without one.
        stable: How what serves now answers; None where no shares are measured.
        remark: What a person has to know of it.
    """

    service: Service
    document: Document
    before: Document
    wanted: State
    begun: PromotionRecord | None
    rollout: Rollout
    expected: Expected | None
    server: Server | None = None
    shared: Server | None = None
    canary: Server | None = None
    route: Document | None = None
    steps: list[Step] = field(default_factory=list)
    stable: Fingerprint | None = None
    remark: str = ""

    def make(self, problems: Iterable[Problem]) -> None:
        """Finds out what to do, and tries it out on the API server.

        Raises:
            InvalidInputError: With everything that speaks against it, the given problems included.
        """
        problems = list(problems)
        if self.begun is None and foreign_canary(self.document):
            what = "it has a canary that is not ours"
            problems.append(Problem(str(self.service), what, "let it end first"))
        try:
            if self.rollout.percents:
                require_canary(self.document)
                self._require_no_other_beside()
            if self.expected:
                problems += self._find_servers()
            self._find_steps()
        except InvalidInputError as error:
            problems += error.problems
        if problems:
            raise InvalidInputError(problems)
        names = [step.name for step in self.steps]
        if self.begun and self.begun.step in names:
            self.steps = self.steps[names.index(self.begun.step) :]
        if self.expected and any(step.is_canary and step.percent for step in self.steps):
            self._take_fingerprint(self.expected)

    def _find_servers(self) -> list[Problem]:
        """Who is asked; that the service answers there is seen before anything is changed."""
        service, document, rollout = self.service, self.document, self.rollout
        second = in_cluster_name(document, canary=True)
        if rollout.canary_url:
            self.canary = at_url(rollout.canary_url)
        elif second and can_have_a_canary(document) and service.may_ask(second):
            self.canary = service.behind(second)
        self.server, failures = answering(service, document, rollout.url)
        self.shared = self.server
        if not rollout.url and self._splits_itself():
            told = shared_url(document)
            self.shared = at_url(told) if told else None
            if self.shared:
                failures += _failure(self.shared)
            else:
                what = "its status names no address of the model (/publishers/…), which is shared"
                return [Problem(str(service), what, "say with --url where that is")]
        # What does not serve now, or is on its way, need not answer yet.
        if not failures or self.begun or look(service, document).state != "ready":
            return []
        remedy = "say with --url where it does, or leave the test out with --no-smoke-test"
        what = f"it is ready, but does not answer from here: {'; '.join(failures)}"
        return [Problem(str(service), what, remedy)]

    def _splits_itself(self) -> bool:
        """Whether KServe's own route is to give the canary its share."""
        is_llm = self.before["kind"] == LLM
        return bool(is_llm and any(self.rollout.percents) and why_no_share(self.before) is None)

    def _require_no_other_beside(self) -> None:
        canary = self.service.canary
        if self.before["kind"] == LLM and not self.begun and canary.seen() is not None:
            what = "is there already, and of no promotion that is under way"
            raise InvalidInputError.one(str(canary), what, "remove it, or promote without --canary")
        if len(in_cluster_name(self.before, canary=True) or "") > _LONGEST:
            what = f"the name {self.service.name} is too long for those of a canary's objects"
            raise InvalidInputError.one("--canary", what, "promote without --canary")

    def _find_steps(self) -> None:
        """The steps, beside what serves where that can be and is not to be left out."""
        before, rollout, asked = self.before, self.rollout, bool(self.rollout.percents)
        by_itself = has_second_predictor(before) and not rollout.in_place
        wanted = asked or (self.expected is not None and by_itself)
        can_share, why_not = can_have_a_canary(before), self._why_no_canary() if wanted else None
        if asked and why_not:
            raise InvalidInputError.one("--canary", *why_not)
        if rollout.route:
            path = self.service.route_path(rollout.route)
            self.route = (self.begun and self.begun.route) or self.service.get(path)
            require_route(self.route, before, can_share=asked and has_second_predictor(before))
        serve, split = self._serving(), self.route is not None or self._splits_itself()
        for dark in (True, False) if wanted and can_share and not why_not else (False,):
            self.steps = steps_of(before, serve, rollout.percents, dark=dark, split=split)
            try:
                for step in self.steps:
                    self.service.change(self.document, step.change(self.document), dry_run=True)
                    if step.beside and not self.begun:
                        self.service.canary.make(step.beside, dry_run=True)
                break
            except InvalidInputError as error:
                if asked or not dark:
                    raise
                why_not = (error.problems[0].what, "")
        no_canary = "--canary 0 tests them before" if before["kind"] == LLM else "it has no canary"
        if self.expected and not dark and deployment_mode(before) != "Knative":
            chosen = "--in-place" if rollout.in_place else (why_not or (no_canary,))[0]
            self.remark = f"new pods are tested while they answer users already ({chosen})"
        if asked and dark and not split:
            reason = why_no_share(before) if before["kind"] == LLM else _NO_ROUTE
            self.remark = f"a dark launch: {reason}" if reason else ""

    def _why_no_canary(self) -> tuple[str, str] | None:
        """Why new pods cannot stand beside those that serve, and what would help."""
        nobody_asks = self.expected is not None and self.canary is None
        if not can_have_a_canary(self.before):
            if self.rollout.percents and nobody_asks:
                return (
                    "the service's own URL answers with both checkpoints by turns",
                    "say with --canary-url where the new one alone answers, or --no-smoke-test",
                )
        elif self._would_inherit_arguments():
            return "KServe would give a canary without arguments those of the service", ""
        elif nobody_asks:
            return (
                "the account may not ask the canary's Service through the API server",
                "say with --canary-url where it answers, or use the account of manifests/base",
            )
        return None

    def _would_inherit_arguments(self) -> bool:
        had_some = bool(self.service.kind.state(self.before).arguments)
        return has_second_predictor(self.before) and had_some and not self.wanted.arguments

    def _serving(self) -> Change:
        """What makes of a service one that serves the checkpoint, verified on start where asked."""
        kind, wanted = self.service.kind, self.wanted
        installed = self.service.storage_container()

        def verifying(document: Document) -> Document:
            return verified(document, wanted.uri or "", wanted.digest or "", installed)

        verify = self.rollout.verify_on_start is not False
        try:
            if verify:
                verifying(self.before)
        except InvalidInputError:
            if self.rollout.verify_on_start or verifies(self.before):
                raise
            verify = False  # the cluster cannot, or not from this address

        def change(document: Document) -> Document:
            changed = kind.changed(document, wanted)
            return verifying(changed) if verify else changed

        return change

    def _take_fingerprint(self, expected: Expected) -> None:
        """Asks what serves now where no canary answers."""
        name, server = in_cluster_name(self.document), self.server
        if name and self.service.may_ask(name):
            server = self.service.behind(name)
        elif self.begun:
            server = None  # both may answer there by now
        if server:
            self.stable = take_fingerprint(server, expected.distinguishing)


def answering(
    service: Service, document: Document, url: str | None
) -> tuple[Server | None, list[str]]:
    """Where a service answers from here, at ``url`` or where its status and its Service are.

    The first address that does, else the first; and why they do not.
    """
    name = in_cluster_name(document)
    told = url or (document.get("status") or {}).get("url")
    servers = [at_url(told)] if told else []
    if name and not url and service.may_ask(name):
        servers.append(service.behind(name))
    failures = [] if servers else ["its status names no URL"]
    for server in servers:
        if not (failure := _failure(server)):
            return server, []
        failures += failure
    return (servers[0] if servers else None), failures


def _failure(server: Server) -> list[str]:
    """Why a server does not answer; empty where it does."""
    try:
        server.models(_SECONDS)
    except ServerError as error:
        return [str(error)]
    return []
