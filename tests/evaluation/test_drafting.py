"""How many of the tokens that draft layers guess are accepted, by vLLM."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import zoo
from drafting import FIELDS, add_draft_layer
from safetensors.torch import load_file, save_file

from quantlib.checkpoint.source import FolderSource
from quantlib.checks.linears import rounded_draft_names
from quantlib.evaluation.drafting import LOG_NAME, drafting_of
from quantlib.evaluation.job import Drafted
from quantlib.models import open_model
from quantlib.recipe import Recipe
from quantlib.report.build import build_report
from quantlib.report.html import render_html
from quantlib.report.model_card import render_model_card
from quantlib.report.summary import step_summary
from quantlib.steps.texts import input_of
from quantlib.steps.validate import read_evaluation, validate
from quantlib.store import LocalStore

pytestmark = pytest.mark.usefixtures("shared_engines")

THRESHOLDS = {"max_perplexity_increase": 10, "max_kl_mean": 20, "min_top1_agreement": 0.001}

by_vllm = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform"),
]


@pytest.fixture(scope="module")
def drafting(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a model of a family whose draft layer is right about every other token, once."""
    root = tmp_path_factory.mktemp("drafting")

    def make(family: str) -> Path:
        if not (root / family).exists():
            zoo.make(family, root / family)
            add_draft_layer(root / family, family, strength=0.1)
        return root / family

    return make


@pytest.fixture(scope="module")
def judge(
    tmp_path_factory: pytest.TempPathFactory,
    small_recipe: Callable[..., Recipe],
    run_steps: Callable[..., Any],
) -> Callable[..., tuple[dict[str, Any], Any, Any]]:
    """Quantizes and validates a model; gives the evaluation, the receipt and what was made.

    The store is that of all tests: the original is judged once for all that is made of it.
    """
    store = LocalStore(tmp_path_factory.mktemp("judged") / "store")

    def run(source: Path, **changes: Any) -> tuple[dict[str, Any], Any, Any]:
        recipe = small_recipe(
            quantization={"format": "compressed-tensors", **changes},
            calibration={"num_samples": 4, "sequence_length": 32},
            validation={"num_samples": 2, "max_new_tokens": 16, "thresholds": THRESHOLDS},
        )
        made = run_steps(store, recipe, source)
        receipt = validate(made.store, recipe, made.model, made.plan, made.checkpoint, "cpu")
        return read_evaluation(made.store, receipt), receipt, made

    return run


class TestByVllm:
    """In a real engine."""

    pytestmark = by_vllm

    @pytest.mark.parametrize(("guess", "rate"), [(1.0, 1.0), (-1.0, 0.0)])
    def test_a_layer_that_guesses_right_is_accepted_and_one_that_guesses_wrong_is_not(
        self, guess: float, rate: float, judge: Any, tmp_path: Path
    ) -> None:
        source = zoo.make("qwen3_5", tmp_path / "source")
        add_draft_layer(source, "qwen3_5", guess=guess)
        evaluation, receipt, made = judge(source)
        found = evaluation["drafting"]
        assert (found["original"], found["quantized"], found["refused"]) == (rate, rate, None)
        # Three prompts and two windows, the first token of 16 by the prompt itself; an accepted
        # draft saves a step.
        assert found["drafts"] == pytest.approx(5 * 15 / (1 + rate), abs=5)
        assert receipt.facts["draft_acceptance_original"] == rate
        assert receipt.facts["draft_acceptance_quantized"] == rate
        share = f"{100 * rate:.1f}%"
        row = f"- **drafted tokens accepted**: {share} before, {share} now\n"
        assert row in step_summary(made.store, receipt)
        report = build_report(made.store, made.recipe, made.checkpoint, evaluation, receipt)
        assert f"draft layers guess, {share} are accepted" in render_html(report)
        assert f"| Drafted tokens accepted | {share} | {share} | |" in render_model_card(report)

    @pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "ernie4_5_moe"])
    def test_exact_draft_layers_are_loaded_beside_quantized_blocks(
        self, family: str, judge: Any, drafting: Callable[[str], Path]
    ) -> None:
        # vLLM has no kernels for codes of experts on a CPU.
        evaluation, _, _ = judge(drafting(family), ignore=["re:.*experts.*"])
        assert evaluation["checkpoint_dequantized_reason"] is None
        found = evaluation["drafting"]
        assert found["refused"] is None
        assert 0.3 < found["original"] <= 1
        assert found["quantized"] == pytest.approx(found["original"], abs=0.2)

    @pytest.mark.parametrize("family", FIELDS)
    def test_rounded_draft_layers_draft_as_well(
        self, family: str, judge: Any, drafting: Callable[[str], Path]
    ) -> None:
        source = drafting(family)
        # vLLM has no kernels for codes of experts on a CPU; the shared ones are plain linears.
        ignore = [] if family == "qwen3_5" else [r"re:[.]experts[.]"]
        evaluation, _, made = judge(source, ignore=ignore, draft_layers=True)
        assert evaluation["checkpoint_dequantized_reason"] is None
        assert (
            len(rounded_draft_names(made.recipe.quantization, open_model(FolderSource(source))[1]))
            >= 4
        )
        found = evaluation["drafting"]
        assert found["refused"] is None
        assert 0.3 < found["original"] <= 1
        assert found["quantized"] == pytest.approx(found["original"], abs=0.2)

    def test_what_vllm_does_not_draft_by_is_said_and_validation_goes_on(
        self, judge: Any, tmp_path: Path
    ) -> None:
        source = zoo.make("qwen3_5", tmp_path / "source")
        add_draft_layer(source, "qwen3_5")
        tensors = load_file(source / "model.safetensors")
        tensors["mtp.fc.weight"] = tensors["mtp.fc.weight"][:, :256].contiguous()  # half of it
        save_file(tensors, source / "model.safetensors", {"format": "pt"})
        evaluation, receipt, made = judge(source)
        found = evaluation["drafting"]
        assert (found["original"], found["quantized"]) == (None, None)
        assert found["refused"] and "\n" not in found["refused"]
        assert receipt.facts["verdict"] == "passed"
        assert receipt.facts["drafting_refused"] == found["refused"]
        comparison = input_of(made.store, receipt, "comparison")
        assert (made.store.root / comparison.aside / LOG_NAME).exists()
        report = build_report(made.store, made.recipe, made.checkpoint, evaluation, receipt)
        assert f"was not measured:</strong> {found['refused']}" in render_html(report)


@pytest.mark.parametrize("family", FIELDS)
def test_what_vllm_calls_draft_layers_stays_exact(family: str, tmp_path: Path) -> None:
    source = zoo.make(family, tmp_path)
    blocks = open_model(FolderSource(source))[1].blocks
    assert not open_model(FolderSource(source))[1].drafts
    add_draft_layer(source, family)
    adapter = open_model(FolderSource(source))[1]
    assert adapter.drafts
    assert adapter.blocks == blocks
    assert f"model.layers.{blocks}." in adapter.outside()


def test_rates() -> None:
    assert Drafted(8, 6).rate == 0.75
    assert Drafted(refused="no").rate is None
    assert drafting_of(Drafted(8, 6), Drafted(10, 5)) == {
        "original": 0.75,
        "quantized": 0.5,
        "drafts": 10,
        "refused": None,
    }
