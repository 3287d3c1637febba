"""How many requests through a service's own address a canary answers.

No answer says who gave it, so the two checkpoints are told apart by how they go on after the same
prompts: what each says at an address of its own is its fingerprint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import eq

from quantlib.errors import QuantlibError
from quantlib.promotion.rollout import Rollout
from quantlib.serving.client import Completion, Server, ServerError, together

_NEW_TOKENS = 24
_VOTES = 5
"""Prompts of a request: rounding may turn one answer around, and hardly most of them."""

_FEWEST, _MOST = 100, 1000
_CANARY_ANSWERS = 20
_DEVIATIONS = 3.5
_NEITHER = 0.05
_SECONDS = 60.0
"""How long a route may take until it splits traffic as it was asked to."""

Prompt = tuple[int, ...]
Fingerprint = dict[Prompt, Completion]
"""How a checkpoint goes on after prompts; without those answered otherwise a second time."""


@dataclass(frozen=True)
class Share:
    """Of some requests, how many the canary answered, how many nobody knows who, and its share."""

    canary: int
    neither: int
    requests: int
    percent: int

    @property
    def as_asked(self) -> bool:
        """Whether it is what chance makes of the share that was asked for.

        At 0 % the canary may answer none, above it has to answer one at least.
        """
        if self.neither > _NEITHER * self.requests:
            return False
        if 0 in (self.percent, self.canary):
            return self.percent == self.canary
        share = self.percent / 100
        deviation = math.sqrt(self.requests * share * (1 - share))
        return abs(self.canary - self.requests * share) <= _DEVIATIONS * deviation + 1

    def __str__(self) -> str:
        told = f", and {self.neither} as neither of the two does" if self.neither else ""
        return (
            f"{self.canary} of {self.requests} requests were answered by the canary{told} "
            f"({self.percent} % asked)"
        )


def requests_for(percent: int) -> int:
    """How many requests tell a share: 20 answers of the canary's are expected, within limits."""
    wanted = math.ceil(100 * _CANARY_ANSWERS / percent) if percent else _FEWEST
    return min(_MOST, max(_FEWEST, wanted))


def take_fingerprint(server: Server, prompts: Sequence[Prompt]) -> Fingerprint:
    """Asks a server whose checkpoint is known, twice: all at once, and one after the other."""
    (model, *_) = server.models()
    once = server.complete(model, prompts, _NEW_TOKENS)
    again = together(lambda prompt: server.complete(model, [prompt], _NEW_TOKENS)[0], prompts)
    answers = zip(prompts, once, again, strict=True)
    return {prompt: first for prompt, first, second in answers if first == second}


def measure_share(server: Server, stable: Fingerprint, canary: Fingerprint, percent: int) -> Share:
    """Counts who answers at a service's own address.

    The fingerprints are of what served before, taken before anything was changed, and of the new
    checkpoint, taken where it alone answers; ``percent`` is the share that was asked for it.

    Raises:
        QuantlibError: Both checkpoints answer every prompt alike, or a request failed.
    """
    prompts = _distinguishing(stable, canary)
    (model, *_) = server.models()
    longest = max(_alike(stable[each], canary[each]) for each in prompts)
    tokens = min(_NEW_TOKENS, longest + 2)

    def lead(_: int) -> int:
        """By how much an answer is nearer to the canary's than to the stable checkpoint's."""
        answers = server.complete(model, prompts, tokens)
        return sum(
            _alike(answer, canary[prompt]) - _alike(answer, stable[prompt])
            for prompt, answer in zip(prompts, answers, strict=True)
        )

    leads = together(lead, range(requests_for(percent)))
    return Share(sum(each > 0 for each in leads), leads.count(0), len(leads), percent)


def settled_share(
    server: Server, stable: Fingerprint, canary: Fingerprint, percent: int, rollout: Rollout
) -> Share:
    """The share that :func:`measure_share` finds as it was asked for, within a minute.

    Raises:
        QuantlibError: It is another, or cannot be told.
    """

    def once() -> Share:
        share = measure_share(server, stable, canary, percent)
        if not share.as_asked:
            raise ServerError(f"the traffic is not shared as asked: {share}")
        return share

    # A route may be in the making.
    return rollout.clock.retry(once, ServerError, _SECONDS, rollout.poll_seconds)


def _distinguishing(stable: Fingerprint, canary: Fingerprint) -> list[Prompt]:
    """The prompts after which the two part first."""
    found = {
        prompt: _alike(completion, canary[prompt])
        for prompt, completion in stable.items()
        if prompt in canary and completion != canary[prompt]
    }
    if not found:
        raise QuantlibError(
            f"the canary answers all of {len(stable)} prompts as the stable service "
            "does, so that who answers a request cannot be told"
        )
    return sorted(found, key=found.__getitem__)[:_VOTES]


def _alike(one: Completion, other: Completion) -> int:
    """How many tokens two completions begin with alike; characters, where there are no tokens.

    That both end there as well is one more.
    """
    left: Sequence[object] = one.text
    right: Sequence[object] = other.text
    if one.tokens is not None and other.tokens is not None:
        left, right = one.tokens, other.tokens
    alike = takewhile(bool, map(eq, left, right))
    return sum(alike) + (left == right)
