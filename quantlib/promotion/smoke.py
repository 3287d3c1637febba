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
from quantlib.checks.recipe import parse_recipe
from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.state import report_address
from quantlib.publishing.verification import Verified
from quantlib.report.evaluation import Probe
from quantlib.serving.client import Completion, Server, ServerError, together
from quantlib.steps.texts import windows_without_store
from quantlib.store import open_store
from quantlib.text.tokenizer import load_tokenizer

_WORDS = 3
_FEWEST_PROBES = 8
_DISTINGUISHING_PROBES = 16


@dataclass(frozen=True)
class Question:
    """A prompt of the report, or a probe: a place in the held-out text.

    Attributes:
        tokens: The prompt; what is before the place.
        text: What the validated checkpoint goes on with.
        token: The same as a token, of a probe; None of a prompt.
    """

    tokens: tuple[int, ...]
    text: str
    token: int | None = None

    def is_met(self, answer: Completion) -> bool:
        """Whether an answer begins as the report's; after a probe, whether it is the token."""
        if self.token is None:
            start = self.text.split()[:_WORDS]
            return answer.text.split()[: len(start)] == start
        if answer.tokens is None:
            return answer.text.strip() == self.text.strip()
        return answer.tokens[:1] == (self.token,)


@dataclass(frozen=True)
class Expected:
    """What of a report is asked and expected.

    ``agreement`` is the share of the probes that is needed, ``seconds`` the limit of each answer.
    """

    prompts: tuple[Question, ...]
    max_new_tokens: int
    probes: tuple[Question, ...]
    agreement: float = 0.9
    seconds: float = 60.0

    @property
    def distinguishing(self) -> tuple[tuple[int, ...], ...]:
        """Prompts by whose completions two checkpoints may be told apart."""
        probes = self.probes[:: max(1, len(self.probes) // _DISTINGUISHING_PROBES)]
        return (*(each.tokens for each in self.prompts), *(each.tokens for each in probes))


def expected_of(published: Verified, agreement: float = 0.9, seconds: float = 60.0) -> Expected:
    """What a checkpoint's report lets expect, within limits as of :class:`Expected`.

    Raises:
        InvalidInputError: It was not validated, or before there were probes; or the held-out text
            is not the report's here.
    """
    evaluation = published.report.evaluation
    if evaluation is None:
        raise InvalidInputError.one(report_address(published), "holds no evaluation")
    probes, otherwise = evaluation.probes, "or leave the test out with --no-smoke-test"
    if probes is None:
        raise InvalidInputError.one(
            report_address(published),
            "is from before reports held probes, which the smoke test asks for",
            f"validate and publish the checkpoint again, {otherwise}",
        )
    if len(probes) < _FEWEST_PROBES:
        raise InvalidInputError.one(
            report_address(published),
            f"holds {len(probes)} probes, which are too few to test a server by: in the held-out "
            "text the model is hardly ever sure of the next token",
            f"validate it on more text, or on text of the kind that it was trained on, {otherwise}",
        )
    source = StoreSource(open_store(published.address))
    recipe = parse_recipe(published.report.recipe)
    tokenizer = load_tokenizer(source)
    windows = windows_without_store(recipe.validation, source)
    if windows.part(0, evaluation.text.windows).digest != evaluation.text.digest:
        raise InvalidInputError.one(
            "held-out text",
            f"{windows.source} is another here than the one that validated the checkpoint",
            f"promote where that text is at hand, {otherwise}",
        )

    def at(probe: Probe) -> Question:
        before = windows.tokens[probe.window, : probe.position].tolist()
        whole = tokenizer.decode([*before, probe.token])
        return Question(tuple(before), whole[len(tokenizer.decode(before)) :], probe.token)

    prompts = tuple(
        Question(tuple(tokenizer.encode(each.prompt).ids), each.quantized)
        for each in evaluation.generations
    )
    new_tokens = recipe.validation.max_new_tokens
    return Expected(prompts, new_tokens, tuple(map(at, probes)), agreement, seconds)


def smoke_test(server: Server, expected: Expected) -> str:
    """Asks a server, and says what was found, or raises QuantlibError."""
    (model, *_) = server.models(expected.seconds)
    questions = [*expected.prompts, *expected.probes]
    answered: list[bool] = []

    def ask(question: Question) -> bool:
        tokens = expected.max_new_tokens if question.token is None else 1
        (answer,) = server.complete(model, [question.tokens], tokens, expected.seconds)
        answered.append(True)
        return question.is_met(answer)

    try:
        met = together(ask, questions)
    except ServerError as error:
        raise QuantlibError(
            f"{server.name} stopped answering in the smoke test, after {len(answered)} of "
            f"{len(questions)} requests: {error}"
        ) from None
    prompts, probes = len(expected.prompts), len(expected.probes)
    begun, agreeing = sum(met[:prompts]), sum(met[prompts:])
    needed = math.ceil(expected.agreement * probes)
    in_words = (
        f"{begun} of {prompts} prompts and {agreeing} of {probes} probes are answered as in the "
        "report"
    )
    if begun * 2 < prompts or agreeing < needed:
        raise QuantlibError(
            f"{server.name}: {in_words}; {-(-prompts // 2)} and {needed} are required"
        )
    return f"{in_words}, slowest answer {server.slowest:.1f} s"
