"""Whether a server answers as the validated checkpoint does, asked through its OpenAI API.

Prompts go as tokens, so that the server's tokenizer is not what is judged. Kernels differ between
machines: a completion has to begin as the report's, and most of the report's probes, at which the
checkpoint is sure of the next token, have to be followed by that token; a checkpoint whose scales
are swapped or missing finds few of them. No probability is asked for: the first request for one
has vLLM compile a function, which ends a server that has no compiler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantlib.checkpoint.source import StoreSource
from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.published import Published
from quantlib.promotion.server import Completion, Server, ServerError, together
from quantlib.recipe import parse_recipe
from quantlib.report.model import Probe as ReportedProbe
from quantlib.steps.texts import windows_without_store
from quantlib.text.tokenizer import load_tokenizer

_WORDS = 3
_FEWEST_PROBES = 8
_DISTINGUISHING_PROBES = 16


class SmokeError(QuantlibError):
    """The server does not answer as the validated checkpoint does."""


@dataclass(frozen=True)
class Limits:
    """How far answers may be from the report's.

    Attributes:
        agreement: Share of the probes that are to be answered as in the report.
        seconds: For each answer.
    """

    agreement: float = 0.9
    seconds: float = 60.0


@dataclass(frozen=True)
class Prompt:
    """A prompt of the report.

    Attributes:
        tokens: The prompt.
        completion: What the validated checkpoint goes on with.
    """

    tokens: tuple[int, ...]
    completion: str

    def is_met(self, answer: Completion) -> bool:
        """Whether an answer begins as the completion."""
        start = self.completion.split()[:_WORDS]
        return answer.text.split()[: len(start)] == start


@dataclass(frozen=True)
class Probe:
    """A place in the held-out text.

    Attributes:
        tokens: What is before it.
        token: What the validated checkpoint goes on with.
        text: The same as text.
    """

    tokens: tuple[int, ...]
    token: int
    text: str

    def is_met(self, answer: Completion) -> bool:
        """Whether an answer is the token; its text, where the server gives no tokens."""
        if answer.tokens is None:
            return answer.text.strip() == self.text.strip()
        return answer.tokens[:1] == (self.token,)


@dataclass(frozen=True)
class Expected:
    """What is asked, and what is expected.

    Attributes:
        prompts: Of the report.
        max_new_tokens: Of a completion.
        probes: Of the report.
    """

    prompts: tuple[Prompt, ...]
    max_new_tokens: int
    probes: tuple[Probe, ...]

    @property
    def distinguishing(self) -> tuple[tuple[int, ...], ...]:
        """Prompts by whose completions two checkpoints may be told apart."""
        probes = self.probes[:: max(1, len(self.probes) // _DISTINGUISHING_PROBES)]
        return (*(each.tokens for each in self.prompts), *(each.tokens for each in probes))


def expected_of(published: Published) -> Expected:
    """What a checkpoint's report lets expect.

    Raises:
        InvalidInputError: It was not validated, or before there were probes; or the held-out text
            is not the report's here.
    """
    evaluation = published.report.evaluation
    if evaluation is None:
        raise InvalidInputError.one(published.report_address, "holds no evaluation")
    probes = _probes_of(published.report_address, evaluation.probes)
    source = StoreSource(published.store)
    recipe = parse_recipe(published.report.recipe)
    tokenizer = load_tokenizer(source)
    windows = windows_without_store(recipe.validation, source)
    if windows.digest != evaluation.text.digest:
        raise InvalidInputError.one(
            "held-out text",
            f"{windows.source} is another here than the one that validated the checkpoint",
            "promote where that text is at hand, or leave the test out with --no-smoke-test",
        )

    def at(probe: ReportedProbe) -> Probe:
        before = windows.tokens[probe.window, : probe.position].tolist()
        whole = tokenizer.decode([*before, probe.token])
        return Probe(tuple(before), probe.token, whole[len(tokenizer.decode(before)) :])

    return Expected(
        tuple(
            Prompt(tuple(tokenizer.encode(each.prompt).ids), each.quantized)
            for each in evaluation.generations
        ),
        recipe.validation.max_new_tokens,
        tuple(map(at, probes)),
    )


def _probes_of(address: str, probes: tuple[ReportedProbe, ...] | None) -> tuple[ReportedProbe, ...]:
    if probes is None:
        raise InvalidInputError.one(
            address,
            "is from before reports held probes, which the smoke test asks for",
            "validate and publish the checkpoint again, or leave the test out with --no-smoke-test",
        )
    if len(probes) < _FEWEST_PROBES:
        raise InvalidInputError.one(
            address,
            f"holds {len(probes)} probes, which are too few to test a server by: in the held-out "
            "text the model is hardly ever sure of the next token",
            "validate it on more text, or on text of the kind that it was trained on, or leave the "
            "test out with --no-smoke-test",
        )
    return probes


def smoke_test(server: Server, expected: Expected, limits: Limits) -> str:
    """Asks a server, and says what was found.

    Args:
        server: Who is asked.
        expected: What is asked and expected.
        limits: How far off the answers may be.

    Raises:
        SmokeError: It answers otherwise, too late, or not at all.
    """
    try:
        (model, *_) = server.models(limits.seconds)
    except ServerError as error:
        raise SmokeError(str(error)) from None
    asked: list[tuple[Prompt | Probe, int]] = [
        *((prompt, expected.max_new_tokens) for prompt in expected.prompts),
        *((probe, 1) for probe in expected.probes),
    ]
    answered: list[bool] = []

    def ask(each: tuple[Prompt | Probe, int]) -> bool:
        question, tokens = each
        (answer,) = server.complete(model, [question.tokens], tokens, limits.seconds)
        answered.append(True)
        return question.is_met(answer)

    try:
        met = together(ask, asked)
    except ServerError as error:
        raise SmokeError(
            f"{server.name} stopped answering in the smoke test, after {len(answered)} of "
            f"{len(asked)} requests: {error}"
        ) from None
    prompts, probes = len(expected.prompts), len(expected.probes)
    begun, agreeing = sum(met[:prompts]), sum(met[prompts:])
    needed = math.ceil(limits.agreement * probes)
    in_words = (
        f"{begun} of {prompts} prompts and {agreeing} of {probes} probes are answered as in the "
        "report"
    )
    if begun * 2 < prompts or agreeing < needed:
        raise SmokeError(f"{server.name}: {in_words}; {-(-prompts // 2)} and {needed} are required")
    return f"{in_words}, slowest answer {server.slowest:.1f} s"
