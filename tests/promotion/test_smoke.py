"""The smoke test, against a fake of vLLM's server."""

import math
from collections.abc import Iterator

import pytest
from fake_openai import FakeOpenAI, fake_openai

from quantlib.promotion.smoke import Expected, Limits, SmokeError, smoke_test

EXPECTED = Expected(
    prompts=(((1, 2, 3), " Paris. It is a city."), ((4, 5), " four."), ((6,), " red and blue")),
    max_new_tokens=8,
    windows=(tuple(range(16)), tuple(range(16, 32))),
    perplexity=math.e,
)


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with fake_openai() as fake:
        fake.completions = dict(EXPECTED.prompts)
        yield fake


def test_the_reports_answers_pass(server: FakeOpenAI) -> None:
    for url in (server.url, f"{server.url}/v1", f"{server.url}/v1/"):
        found = smoke_test(url, EXPECTED, Limits())
        assert "3 of 3 prompts" in found
        assert "perplexity 2.72 (report: 2.72)" in found


def test_a_completion_may_end_otherwise(server: FakeOpenAI) -> None:
    server.completions[1, 2, 3] = " Paris. It is what other kernels say"
    assert "3 of 3" in smoke_test(server.url, EXPECTED, Limits())
    server.completions[1, 2, 3] = " London"
    assert "2 of 3" in smoke_test(server.url, EXPECTED, Limits())


def test_nonsense_is_found(server: FakeOpenAI) -> None:
    server.completions = {}
    with pytest.raises(SmokeError, match="0 of 3 prompts are answered as in the report"):
        smoke_test(server.url, EXPECTED, Limits())


@pytest.mark.parametrize("logprob", [-4.0, -0.1, -math.inf, math.nan])
def test_a_perplexity_that_is_far_off_is_found(server: FakeOpenAI, logprob: float) -> None:
    server.logprob = logprob
    with pytest.raises(SmokeError, match=r"perplexity is .*not between 1.36 and 5.44"):
        smoke_test(server.url, EXPECTED, Limits())


def test_slow_broken_and_absent_servers_are_found(server: FakeOpenAI) -> None:
    server.delay = 0.5
    with pytest.raises(SmokeError, match=r"does not answer: timed out|above 0\.1"):
        smoke_test(server.url, EXPECTED, Limits(seconds=0.1))
    server.delay, server.broken = 0.0, True
    with pytest.raises(SmokeError, match="answers 500"):
        smoke_test(server.url, EXPECTED, Limits())
    with pytest.raises(SmokeError, match="does not answer"):
        smoke_test("http://127.0.0.1:9", EXPECTED, Limits())
