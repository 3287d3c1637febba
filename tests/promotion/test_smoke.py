"""The smoke test, against a fake of vLLM's server."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_openai import FakeOpenAI, fake_openai
from promotion.answers import EXPECTED, answer_as_expected
from promotion.conftest import MakePublished

from quantlib.errors import InvalidInputError, QuantlibError
from quantlib.promotion import smoke
from quantlib.promotion.checks import check_published
from quantlib.promotion.smoke import (
    Question,
    expected_of,
    smoke_test,
)
from quantlib.publishing.verification import Verified
from quantlib.report.evaluation import Probe
from quantlib.serving.client import at_url


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with fake_openai() as fake:
        answer_as_expected(fake)
        yield fake


def found_at(server: FakeOpenAI, **limits: float) -> str:
    return smoke_test(at_url(server.url), replace(EXPECTED, **limits))


def test_the_reports_answers_pass(server: FakeOpenAI) -> None:
    found = found_at(server)
    assert found.startswith(
        "3 of 3 prompts and 20 of 20 probes are answered as in the report, slowest answer "
    )


def test_nothing_is_asked_that_serving_has_not_warmed(server: FakeOpenAI) -> None:
    found_at(server)
    assert len(server.asked) == 23
    assert not any("logprob" in key or key == "echo" for body in server.asked for key in body)
    assert all(body["temperature"] == 0 for body in server.asked)
    assert sorted(body["max_tokens"] for body in server.asked) == [1] * 20 + [8] * 3


def test_a_completion_may_end_otherwise(server: FakeOpenAI) -> None:
    server.completions[1, 2, 3] = " Paris. It is what other kernels say"
    assert "3 of 3 prompts" in found_at(server)
    server.completions[1, 2, 3] = " London"
    assert "2 of 3 prompts" in found_at(server)


def test_nonsense_is_found(server: FakeOpenAI) -> None:
    server.completions = {}
    with pytest.raises(
        QuantlibError, match=r"0 of 3 prompts and 20 of 20 .*; 2 and 18 are required"
    ):
        found_at(server)


def test_one_probe_in_ten_may_be_missed(server: FakeOpenAI) -> None:
    for missed in (0, 1):
        server.tokens[EXPECTED.probes[missed].tokens] = 7
    assert "18 of 20 probes" in found_at(server)
    server.tokens[EXPECTED.probes[2].tokens] = 7
    with pytest.raises(QuantlibError, match=r"17 of 20 probes .*; 2 and 18 are required"):
        found_at(server)
    assert "17 of 20 probes" in found_at(server, agreement=0.85)
    with pytest.raises(QuantlibError, match="2 and 20 are required"):
        found_at(server, agreement=1.0)


def test_text_is_compared_where_no_tokens_are_given(server: FakeOpenAI) -> None:
    server.with_tokens = False
    server.completions |= {each.tokens: each.text.strip() for each in EXPECTED.probes}
    assert "20 of 20 probes" in found_at(server)
    server.completions |= {each.tokens: " other" for each in EXPECTED.probes[:3]}
    with pytest.raises(QuantlibError, match="17 of 20 probes"):
        found_at(server)


def test_slow_broken_and_absent_servers_are_found(server: FakeOpenAI) -> None:
    server.delay = 0.5
    with pytest.raises(QuantlibError, match=r"does not answer within 0\.1 s|above 0\.1"):
        found_at(server, seconds=0.1)
    server.delay, server.broken = 0.0, True
    with pytest.raises(QuantlibError, match="answers 500"):
        found_at(server)
    with pytest.raises(QuantlibError, match="the connection is refused"):
        smoke_test(at_url("http://127.0.0.1:9"), EXPECTED)


def test_a_server_that_dies_in_the_test_has_failed_it(server: FakeOpenAI) -> None:
    server.dies_after = 10
    with pytest.raises(
        QuantlibError,
        match=r"stopped answering in the smoke test, after \d+ of 23 requests: .*broke",
    ):
        found_at(server)
    assert len(server.asked) < 23


def with_probes(published: Verified, probes: tuple[Probe, ...] | None) -> Verified:
    evaluation = published.report.evaluation
    assert evaluation is not None
    changed = evaluation.model_copy(update={"probes": probes})
    return replace(published, report=published.report.model_copy(update={"evaluation": changed}))


@pytest.fixture
def published(make_published: MakePublished) -> Verified:
    return check_published(str(make_published()))


def test_a_report_of_before_probes_is_refused(published: Verified) -> None:
    with pytest.raises(InvalidInputError, match="validate and publish the checkpoint again"):
        expected_of(with_probes(published, None))


def test_too_few_probes_are_no_test(published: Verified) -> None:
    few = tuple(Probe(window=0, position=1, token=index) for index in range(7))
    with pytest.raises(InvalidInputError, match="holds 7 probes, which are too few"):
        expected_of(with_probes(published, few))


def test_probes_are_asked_with_what_is_before_them(
    published: Verified, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.arange(24).reshape(2, 12)
    probes = tuple(Probe(window=1, position=at, token=90 + at) for at in range(1, 9))
    evaluation = published.report.evaluation
    assert evaluation is not None
    text = evaluation.text

    def windows(digest: str) -> Any:
        found = SimpleNamespace(tokens=tokens, digest=digest, source=text.source)
        found.part = lambda start, stop: found
        return lambda *_: found

    class Tokenizer:
        def encode(self, text: str) -> Any:
            return SimpleNamespace(ids=[len(text)])

        def decode(self, ids: list[int]) -> str:
            return "".join(f" {each}" for each in ids).strip()

    monkeypatch.setattr(smoke, "load_tokenizer", lambda _: Tokenizer())
    monkeypatch.setattr(smoke, "windows_without_store", windows(text.digest))
    expected = expected_of(with_probes(published, probes))
    assert expected.probes[1] == Question((12, 13), " 92", 92)
    assert expected.prompts[1] == Question((len("Two and two are"),), " four.")
    assert expected.distinguishing[:4] == ((24,), (15,), (32,), (12,))
    monkeypatch.setattr(smoke, "windows_without_store", windows("sha256:other"))
    with pytest.raises(InvalidInputError, match="is another here"):
        expected_of(with_probes(published, probes))
