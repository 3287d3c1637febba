"""SmoothQuant through the steps: which inputs are scaled, and what becomes of the checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quantlib.checkpoint.source import FolderSource, ReceiptSource
from quantlib.checkpoint.tensors import read_tensors
from quantlib.errors import InvalidInputError
from quantlib.evaluation.transformers_engine import load_model
from quantlib.outlier_suppression.smooth_quant import CANDIDATES
from quantlib.steps.fetch import fetch
from quantlib.steps.plan import plan
from quantlib.steps.smooth import SCALES_NAME
from quantlib.steps.texts import bring_texts, windows_without_store
from quantlib.store import LocalStore

Fixture = Callable[..., Any]
ALL_PAIRS = ["norms", "value_output", "up_down"]
W8A8 = {"weights": {"bits": 8, "group_size": -1}, "activations": "int8"}


def smooth_quant(**options: Any) -> dict[str, Any]:
    return {"method": "smooth_quant", "options": options}


def scales_of(made: Any) -> dict[str, torch.Tensor]:
    return read_tensors(ReceiptSource(made.store, made.smoothing), SCALES_NAME)


@pytest.fixture(scope="module")
def outliers(make_model: Fixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with two channels behind every norm, and one of v and up, far above the others."""
    from safetensors.torch import load_file, save_file

    folder = make_model(
        tmp_path_factory.mktemp("outliers") / "m",
        initializer_range=0.1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor[[3, 40]] *= 40
        if name.endswith(("q_proj.weight", "k_proj.weight", "gate_proj.weight")):
            tensor[:, [3, 40]] /= 20
        if name.endswith(("v_proj.weight", "up_proj.weight")):
            tensor[5] *= 40
        if name.endswith("o_proj.weight"):
            tensor[:, [5, 21]] /= 40  # value head 0 is read by query heads 0 and 1
        if name.endswith("down_proj.weight"):
            tensor[:, 5] /= 40
    save_file(tensors, file, {"format": "pt"})
    return folder


def test_what_stays_exact_is_left_alone(
    store: LocalStore, tiny_llama: Path, small_recipe: Fixture, run_steps: Fixture
) -> None:
    recipe = small_recipe(
        quantization=W8A8 | {"layers": [0, 2], "ignore": ["gate_proj", "up_proj", "o_proj"]},
        outlier_suppression=smooth_quant(alpha=[0.1, 0.2, 0.3, 0.4], pairs=ALL_PAIRS),
    )
    made = run_steps(store, recipe, tiny_llama)
    # o is exact itself, down gets its input from up, which is exact.
    assert set(scales_of(made)) == {"0.self_attn.q_proj", "2.self_attn.q_proj"}
    assert made.smoothing.facts["alpha"] == [0.1, None, 0.3, None]
    blocks = read_tensors(ReceiptSource(store, made.quantized[0]), "blocks.safetensors")
    original = read_tensors(FolderSource(tiny_llama), "model.safetensors")
    untouched = {name for name in blocks if name in original and ".1." in name}
    untouched |= {name for name in blocks if "o_proj" in name or "post_attention" in name}
    assert all(torch.equal(blocks[name], original[name]) for name in untouched)
    assert len(untouched) == 9 + 2 * 2
    norm = "model.layers.0.input_layernorm.weight"
    assert not torch.equal(blocks[norm], original[norm])


def test_a_group_of_which_a_part_stays_exact_is_left_alone(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: Fixture,
    run_steps: Fixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # vLLM refuses such a checkpoint for the linears that it fuses; other families have others.
    monkeypatch.setattr("quantlib.models.LlamaAdapter.fused", lambda *_: {})
    recipe = small_recipe(
        quantization=W8A8 | {"ignore": ["gate_proj"]}, outlier_suppression=smooth_quant()
    )
    made = run_steps(store, recipe, tiny_llama)
    assert set(scales_of(made)) == {f"{block}.self_attn.q_proj" for block in range(4)}


def test_a_list_that_does_not_fit_the_model_is_refused_before_work(
    store: LocalStore, tiny_llama: Path, small_recipe: Fixture
) -> None:
    model, recipe = fetch(store, str(tiny_llama)), small_recipe()
    texts = bring_texts(store, recipe)
    plan(store, small_recipe(outlier_suppression=smooth_quant(alpha=0.5)), model, texts, 0)
    recipe = small_recipe(outlier_suppression=smooth_quant(alpha=[0.5, 0.6, 0.7]))
    with pytest.raises(InvalidInputError) as refused:
        plan(store, recipe, model, texts, 0)
    (problem,) = refused.value.problems
    assert problem.where == "outlier_suppression.options.alpha"
    assert problem.what == "lists 3 numbers; the model has 4 blocks"
    assert "one per block" in str(problem)


@torch.no_grad()
def divergence(made: Any, source: Path, folder: Path, section: str = "calibration") -> float:
    """Mean KL divergence of the checkpoint from the original."""
    made.export(folder)
    tokens = torch.from_numpy(
        windows_without_store(getattr(made.recipe, section), FolderSource(source)).tokens
    )
    wanted, found = (
        load_model(path, torch.float32)(tokens).logits.log_softmax(-1) for path in (source, folder)
    )
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


@pytest.mark.parametrize("activations", ["int8", "int8-static"])
@pytest.mark.parametrize("method", ["minmax", "gptq"])
def test_smoothing_makes_activations_easier_to_round(
    store: LocalStore,
    outliers: Path,
    small_recipe: Fixture,
    run_steps: Fixture,
    tmp_path: Path,
    method: str,
    activations: str,
) -> None:
    quantization = W8A8 | {"method": method, "activations": activations}
    found = {}
    for name, suppression in (
        ("plain", None),
        ("fixed", smooth_quant(alpha=0.5)),
        ("auto", smooth_quant(alpha="auto")),
        ("auto, all pairs", smooth_quant(alpha="auto", pairs=ALL_PAIRS)),
    ):
        recipe = small_recipe(
            quantization=quantization, outlier_suppression=suppression, num_ranges=2
        )
        made = run_steps(store, recipe, outliers)
        found[name] = divergence(made, outliers, tmp_path / name)
        if name.startswith("auto"):
            assert set(made.smoothing.facts["alpha"]) <= set(CANDIDATES)
    assert 0 < found["fixed"] < 0.95 * found["plain"]
    assert found["auto"] < 0.95 * found["plain"]
    # What is left lies in the inputs of o and down, which no norm reaches.
    assert found["auto, all pairs"] < found["auto"] / 10


def test_auto_does_not_fit_static_scales_to_a_short_text(
    store: LocalStore, tiny_llama: Path, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    """A strong alpha looks best on the text that it was fitted to, and saturates on all other."""
    found = {}
    for name, suppression in (
        ("plain", None),
        ("strong", smooth_quant(alpha=0.95, pairs=ALL_PAIRS)),
        ("auto", smooth_quant(alpha="auto", pairs=ALL_PAIRS)),
    ):
        recipe = small_recipe(
            quantization=W8A8 | {"method": "minmax", "activations": "int8-static"},
            calibration={"num_samples": 2, "sequence_length": 64},
            outlier_suppression=suppression,
        )
        made = run_steps(store, recipe, tiny_llama)
        found[name] = divergence(made, tiny_llama, tmp_path / name, "validation")
    assert found["strong"] > 3 * found["plain"]
    assert found["auto"] < 1.3 * found["plain"]
