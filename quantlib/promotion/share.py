"""How many requests through a service's own address a canary answers.

No answer says who gave it, so the two checkpoints are told apart by how they go on after the same
prompts: what each says at an address of its own is its fingerprint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantlib.errors import QuantlibError
from quantlib.serving.client import Completion, Server, together

_NEW_TOKENS = 24
_VOTES = 5
"""Prompts of a request: rounding may turn one answer around, and hardly most of them."""

_FEWEST, _MOST = 100, 1000
_CANARY_ANSWERS = 20
_DEVIATIONS = 3.5
_NEITHER = 0.05

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
        if self.percent == 0 or self.canary == 0:
            return self.percent == 0 and self.canary == 0
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
    if one.tokens is None or other.tokens is None:
        left: Sequence[object] = one.text
        right: Sequence[object] = other.text
    else:
        left, right = one.tokens, other.tokens
    pairs = enumerate(zip(left, right, strict=False))
    whole = min(len(left), len(right)) + (len(left) == len(right))
    return next((at for at, (a, b) in pairs if a != b), whole)
