"""Whether a server answers as the validated checkpoint does, asked through its OpenAI API.

Prompts and windows of tokens go as numbers, so that the server's tokenizer is not what is judged.
Kernels differ between machines: a completion has to begin as the report's, and perplexity has to be
within a factor of the report's, where scales that are swapped or missing are far off both.
"""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from quantlib.checkpoint.source import StoreSource
from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion.published import Published
from quantlib.recipe import parse_recipe
from quantlib.steps.texts import windows_without_store
from quantlib.text.tokenizer import load_tokenizer

_WORDS = 3
_WINDOWS = 4


class SmokeError(QuantlibError):
    """The server does not answer as the validated checkpoint does."""


@dataclass(frozen=True)
class Limits:
    """How far answers may be from the report's.

    Attributes:
        perplexity_factor: Of the report's perplexity, up and down.
        seconds: For each answer.
    """

    perplexity_factor: float = 2.0
    seconds: float = 60.0


@dataclass(frozen=True)
class Expected:
    """What is asked, and what is expected.

    Attributes:
        prompts: Tokens of each prompt, and the completion of the report.
        max_new_tokens: Of a completion.
        windows: Tokens of held-out text.
        perplexity: On that text, by the report.
    """

    prompts: tuple[tuple[tuple[int, ...], str], ...]
    max_new_tokens: int
    windows: tuple[tuple[int, ...], ...]
    perplexity: float


def expected_of(published: Published) -> Expected:
    """What a checkpoint's report lets expect.

    Raises:
        InvalidInputError: It was not validated, or the held-out text is not the report's here.
    """
    evaluation = published.report.evaluation
    if evaluation is None:
        raise InvalidInputError.one(published.report_address, "holds no evaluation")
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
    prompts = [
        (tuple(tokenizer.encode(each.prompt).ids), each.quantized)
        for each in evaluation.generations
    ]
    return Expected(
        tuple(prompts),
        recipe.validation.max_new_tokens,
        tuple(tuple(map(int, window)) for window in windows.tokens[:_WINDOWS]),
        evaluation.quantized.perplexity,
    )


def smoke_test(url: str, expected: Expected, limits: Limits) -> str:
    """Asks a server, and says what was found.

    Args:
        url: Of the server, with or without ``/v1``.
        expected: What is asked and expected.
        limits: How far off the answers may be.

    Raises:
        SmokeError: It answers otherwise, too late, or not at all.
    """
    server = _Server(url.rstrip("/").removesuffix("/v1"), limits.seconds)
    name = server.model()
    agreeing = sum(
        _begins_alike(server.complete(name, tokens, expected.max_new_tokens), wanted)
        for tokens, wanted in expected.prompts
    )
    if agreeing * 2 < len(expected.prompts):
        raise SmokeError(
            f"{url}: {agreeing} of {len(expected.prompts)} prompts are answered as in the report"
        )
    perplexity = _perplexity([server.logprobs(name, window) for window in expected.windows])
    low, high = (
        expected.perplexity / limits.perplexity_factor,
        expected.perplexity * limits.perplexity_factor,
    )
    if not low <= perplexity <= high:
        raise SmokeError(
            f"{url}: perplexity is {perplexity:.2f}, not between {low:.2f} and {high:.2f} "
            f"(the report has {expected.perplexity:.2f})"
        )
    return (
        f"{agreeing} of {len(expected.prompts)} prompts answered as in the report, "
        f"perplexity {perplexity:.2f} (report: {expected.perplexity:.2f}), "
        f"slowest answer {server.slowest:.1f} s"
    )


def _begins_alike(answer: str, wanted: str) -> bool:
    start = wanted.split()[:_WORDS]
    return answer.split()[: len(start)] == start


def _perplexity(logprobs: Sequence[Sequence[float]]) -> float:
    values = [value for window in logprobs for value in window]
    mean = -sum(values) / len(values) if values else math.nan
    return math.exp(mean) if mean < 700 else math.inf


class _Server:
    """An OpenAI server as vLLM is one; the slowest answer is remembered."""

    def __init__(self, url: str, seconds: float) -> None:
        self._url = url
        self._seconds = seconds
        self.slowest = 0.0

    def model(self) -> str:
        answer = self._ask("/v1/models", None)
        with self._understood("/v1/models"):
            return str(answer["data"][0]["id"])

    def complete(self, model: str, prompt: Sequence[int], tokens: int) -> str:
        body = {"model": model, "prompt": list(prompt), "max_tokens": tokens, "temperature": 0}
        answer = self._ask("/v1/completions", body)
        with self._understood("/v1/completions"):
            return str(answer["choices"][0]["text"])

    def logprobs(self, model: str, window: Sequence[int]) -> list[float]:
        # A window may be as long as the server allows: the one token more has to fit.
        prompt = list(window[:-1])
        body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
        answer = self._ask("/v1/completions", body | {"prompt_logprobs": 0})
        with self._understood("/v1/completions"):
            given = answer["choices"][0]["prompt_logprobs"]
            return [
                float(at[str(token)]["logprob"])
                for at, token in zip(given[1:], prompt[1:], strict=True)
            ]

    def _ask(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            self._url + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        started = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=self._seconds) as answer:
                data = answer.read()
        except urllib.error.HTTPError as error:
            said = error.read(500).decode(errors="replace")
            raise SmokeError(f"{self._url}{path} answers {error.code}: {said}") from None
        except (OSError, HTTPException, ValueError) as error:
            raise SmokeError(f"{self._url}{path} does not answer: {error}") from None
        seconds = time.monotonic() - started
        self.slowest = max(self.slowest, seconds)
        if seconds > self._seconds:
            raise SmokeError(f"{self._url}{path} took {seconds:.1f} s, above {self._seconds:.1f}")
        try:
            return json.loads(data)
        except ValueError:
            raise SmokeError(f"{self._url}{path} answers no JSON") from None

    @contextmanager
    def _understood(self, path: str) -> Iterator[None]:
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise SmokeError(
                f"{self._url}{path} answers otherwise than vLLM does: {error!r}"
            ) from None
