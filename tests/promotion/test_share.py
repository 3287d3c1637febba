"""How a canary's share is counted, with fakes that answer as two checkpoints."""

import itertools
import random
from collections.abc import Callable, Iterator

import pytest
from fake_openai import FakeOpenAI, fake_openai

from quantlib.errors import QuantlibError
from quantlib.promotion.share import (
    Fingerprint,
    Share,
    measure_share,
    requests_for,
    take_fingerprint,
)
from quantlib.serving.client import ServerError, at_url

PROMPTS = ((1, 2, 3), (4,), (5, 6))


@pytest.fixture
def stable() -> Iterator[FakeOpenAI]:
    with fake_openai() as fake:
        fake.completions = {PROMPTS[0]: " the same", PROMPTS[1]: " red and blue", PROMPTS[2]: " a"}
        yield fake


@pytest.fixture
def canary() -> Iterator[FakeOpenAI]:
    with fake_openai() as fake:
        fake.completions = {PROMPTS[0]: " the same", PROMPTS[1]: " red or blue", PROMPTS[2]: " b"}
        yield fake


@pytest.fixture
def service() -> Iterator[FakeOpenAI]:
    with fake_openai() as fake:
        yield fake


def by_turns(stable: FakeOpenAI, canary: FakeOpenAI, every: int) -> Callable[[], FakeOpenAI]:
    """Every so manieth request to the canary."""
    count = itertools.count(1)
    return lambda: canary if next(count) % every == 0 else stable


def fingerprints(*servers: FakeOpenAI) -> tuple[Fingerprint, ...]:
    return tuple(take_fingerprint(at_url(each.url), PROMPTS) for each in servers)


@pytest.mark.parametrize(("percent", "every", "counted"), [(10, 10, 20), (50, 2, 50), (20, 5, 20)])
def test_the_share_that_was_asked_for_is_counted(
    stable: FakeOpenAI,
    canary: FakeOpenAI,
    service: FakeOpenAI,
    percent: int,
    every: int,
    counted: int,
) -> None:
    prints = fingerprints(stable, canary)
    service.backend = by_turns(stable, canary, every)
    before = service.connections
    share = measure_share(at_url(service.url), *prints, percent)
    assert share == Share(counted, 0, requests_for(percent), percent)
    assert share.as_asked
    assert service.connections - before == share.requests + 1
    said = f"{counted} of {share.requests} requests were answered by the canary ({percent} % asked)"
    assert str(share) == said


def test_the_prompts_that_tell_go_in_one_request(
    stable: FakeOpenAI, canary: FakeOpenAI, service: FakeOpenAI
) -> None:
    prints = fingerprints(stable, canary)
    service.backend = lambda: stable
    measure_share(at_url(service.url), *prints, 0)
    # " a" and " b" part after one token, " red and" and " red or" after five.
    assert service.asked[0]["prompt"] == [[5, 6], [4]]
    assert service.asked[0]["max_tokens"] == 7


def test_a_random_split_is_what_was_asked_for(
    stable: FakeOpenAI, canary: FakeOpenAI, service: FakeOpenAI
) -> None:
    prints = fingerprints(stable, canary)
    chance = random.Random(3)
    service.backend = lambda: canary if chance.random() < 0.25 else stable
    share = measure_share(at_url(service.url), *prints, 25)
    assert share.as_asked
    assert share.canary != 25


@pytest.mark.parametrize(("percent", "of_canary"), [(10, False), (10, True), (50, False)])
def test_a_share_that_is_not_split_fails(
    stable: FakeOpenAI, canary: FakeOpenAI, service: FakeOpenAI, percent: int, of_canary: bool
) -> None:
    prints = fingerprints(stable, canary)
    service.backend = lambda: canary if of_canary else stable
    share = measure_share(at_url(service.url), *prints, percent)
    assert share.canary == (share.requests if of_canary else 0)
    assert not share.as_asked


def test_at_no_percent_no_request_may_reach_the_canary(
    stable: FakeOpenAI, canary: FakeOpenAI, service: FakeOpenAI
) -> None:
    prints = fingerprints(stable, canary)
    service.backend = lambda: stable
    assert measure_share(at_url(service.url), *prints, 0).as_asked
    service.backend = by_turns(stable, canary, 100)
    share = measure_share(at_url(service.url), *prints, 0)
    assert str(share) == "1 of 100 requests were answered by the canary (0 % asked)"
    assert not share.as_asked


def test_an_answer_that_is_neithers_counts_for_the_nearest(
    stable: FakeOpenAI, canary: FakeOpenAI, service: FakeOpenAI
) -> None:
    prints = fingerprints(stable, canary)
    # One of two answers was turned around by rounding; the other has more letters of the canary's.
    service.completions = {PROMPTS[1]: " red or else", PROMPTS[2]: " ?"}
    assert measure_share(at_url(service.url), *prints, 50).canary == 100
    service.completions = {}
    share = measure_share(at_url(service.url), *prints, 50)
    assert (share.canary, share.neither) == (0, 100)
    assert "100 as neither of the two does" in str(share)
    assert not share.as_asked


def test_text_tells_where_no_tokens_are_given(
    stable: FakeOpenAI, canary: FakeOpenAI, service: FakeOpenAI
) -> None:
    stable.with_tokens = canary.with_tokens = False
    prints = fingerprints(stable, canary)
    service.backend = by_turns(stable, canary, 10)
    assert measure_share(at_url(service.url), *prints, 10).canary == 20


def test_two_that_answer_alike_cannot_be_told_apart(
    stable: FakeOpenAI, service: FakeOpenAI
) -> None:
    prints = fingerprints(stable, stable)
    with pytest.raises(QuantlibError, match="answers all of 3 prompts as the stable service does"):
        measure_share(at_url(service.url), *prints, 10)
    assert not service.asked


def test_a_prompt_that_is_answered_now_so_now_so_is_no_sign(stable: FakeOpenAI) -> None:
    turns = itertools.count()
    steady, stable.completions = stable.completions, {}

    def answer() -> FakeOpenAI:
        stable.completions = steady | {PROMPTS[2]: f" {next(turns)}"}
        return stable

    stable.backend = answer
    (found,) = fingerprints(stable)
    assert set(found) == set(PROMPTS[:2])


def test_a_request_that_fails_is_no_share(
    stable: FakeOpenAI, canary: FakeOpenAI, service: FakeOpenAI
) -> None:
    prints = fingerprints(stable, canary)
    service.backend = lambda: stable
    service.dies_after = 30
    with pytest.raises(ServerError, match="broke the connection off"):
        measure_share(at_url(service.url), *prints, 10)


@pytest.mark.parametrize(
    ("percent", "requests"), [(0, 100), (1, 1000), (2, 1000), (5, 400), (10, 200), (50, 100)]
)
def test_small_shares_take_more_requests(percent: int, requests: int) -> None:
    assert requests_for(percent) == requests


@pytest.mark.parametrize(
    ("percent", "requests", "least", "most"),
    [(10, 200, 5, 35), (50, 100, 32, 68), (1, 1000, 1, 22)],
)
def test_chance_has_its_limits(percent: int, requests: int, least: int, most: int) -> None:
    accepted = [n for n in range(requests + 1) if Share(n, 0, requests, percent).as_asked]
    assert accepted == list(range(least, most + 1))


def test_a_completion_that_ends_earlier_is_another_one(
    stable: FakeOpenAI, canary: FakeOpenAI, service: FakeOpenAI
) -> None:
    canary.completions = {key: f"{text} and more" for key, text in stable.completions.items()}
    prints = fingerprints(stable, canary)
    service.backend = by_turns(stable, canary, 2)
    assert measure_share(at_url(service.url), *prints, 50) == Share(50, 0, 100, 50)
