from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import read_tensor, read_tensors
from quantlib.formats import format_registry
from quantlib.schemes import WeightScheme
from quantlib.steps.merge import merge
from quantlib.steps.quantize import BLOCKS_NAME, quantize
from quantlib.store import LocalStore

Fixture = Callable[..., Any]


def blocks_of(made: Any, number: int = 0) -> dict[str, torch.Tensor]:
    receipt = made.quantized[number]
    return load(bytes(made.store.read(receipt.path(BLOCKS_NAME))))


def test_a_range_file_is_in_the_final_format(
    store: LocalStore, tiny_llama: Path, small_recipe: Fixture, run_steps: Fixture
) -> None:
    made = run_steps(store, small_recipe(num_ranges=2), tiny_llama)
    first, second = blocks_of(made, 0), blocks_of(made, 1)
    assert {name.split(".")[2] for name in first} == {"0", "1"}
    assert {name.split(".")[2] for name in second} == {"2", "3"}
    down = "model.layers.1.mlp.down_proj"
    assert first[f"{down}.qweight"].shape == (128 * 4 // 32, 64)
    assert f"{down}.weight" not in first
    original = Checkpoint.open(FolderSource(tiny_llama))
    norm = "model.layers.1.input_layernorm.weight"
    assert torch.equal(first[norm], read_tensor(original, norm))


def test_the_codes_stand_for_the_weights(
    store: LocalStore, tiny_llama: Path, small_recipe: Fixture, run_steps: Fixture
) -> None:
    recipe = small_recipe(quantization={"weights": {"bits": 8, "group_size": 32}})
    blocks = blocks_of(run_steps(store, recipe, tiny_llama))
    original = Checkpoint.open(FolderSource(tiny_llama))
    module = "model.layers.2.self_attn.o_proj"
    parts = {name.removeprefix(f"{module}."): t for name, t in blocks.items() if module in name}
    scheme = WeightScheme(bits=8, group_size=32)
    linear = format_registry.get_format("gptq").parse(parts, scheme)
    weight = read_tensor(original, f"{module}.weight").float()
    assert ((linear.dequantize() - weight).norm() / weight.norm()) < 0.01


def test_layers_and_ignored_linears_stay_exact(
    store: LocalStore, tiny_llama: Path, small_recipe: Fixture, run_steps: Fixture
) -> None:
    recipe = small_recipe(quantization={"layers": [0, 2], "ignore": ["down_proj"]})
    made = run_steps(store, recipe, tiny_llama)
    blocks = blocks_of(made)
    original = Checkpoint.open(FolderSource(tiny_llama))
    assert {name.split(".")[2] for name in blocks} == {"0", "1", "2"}
    for name, tensor in blocks.items():
        if ".1." in name or "down_proj" in name:
            assert torch.equal(tensor, read_tensor(original, name)), name
    assert "model.layers.2.mlp.up_proj.qweight" in blocks
    assert made.checkpoint.facts["quantized_blocks"] == [0, 2]


@pytest.mark.parametrize(
    "suppression",
    [{}, {"method": "smooth_quant", "options": {"pairs": ["norms", "value_output", "up_down"]}}],
    ids=["plain", "smooth_quant"],
)
def test_awq_leaves_what_gives_an_input_as_it_is_where_that_stays_exact(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: Fixture,
    run_steps: Fixture,
    suppression: dict[str, Any],
) -> None:
    """The input of o comes from v, and that of v from a norm."""
    attention = ["q_proj", "k_proj", "v_proj"]
    recipe = small_recipe(
        quantization={"method": "awq", "ignore": attention}, outlier_suppression=suppression or None
    )
    blocks = blocks_of(run_steps(store, recipe, tiny_llama))
    original = read_tensors(FolderSource(tiny_llama), "model.safetensors")
    for block in range(4):
        prefix = f"model.layers.{block}"
        names = [f"{prefix}.self_attn.{linear}.weight" for linear in attention]
        for name in (*names, f"{prefix}.input_layernorm.weight"):
            assert torch.equal(blocks[name], original[name]), name
        norm = f"{prefix}.post_attention_layernorm.weight"
        assert not torch.equal(blocks[norm], original[norm])
        assert f"{prefix}.self_attn.o_proj.qweight" in blocks


def test_a_range_does_not_depend_on_the_others(
    store: LocalStore, tiny_llama: Path, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    recipe = small_recipe(num_ranges=2)
    made = run_steps(store, recipe, tiny_llama)
    again = run_steps(LocalStore(tmp_path / "again"), recipe, tiny_llama)
    for one, other in zip(made.quantized, again.quantized, strict=True):
        assert one.files[BLOCKS_NAME] == other.files[BLOCKS_NAME]
    assert made.checkpoint.digest() == again.checkpoint.digest()
    whole = run_steps(LocalStore(tmp_path / "whole"), small_recipe(), tiny_llama)
    # The first range sees what the whole run sees; the second starts from exact hidden states.
    both, first, second = blocks_of(whole), blocks_of(made, 0), blocks_of(made, 1)
    assert all(torch.equal(both[name], tensor) for name, tensor in first.items())
    assert any(not torch.equal(both[name], tensor) for name, tensor in second.items())


def test_smoothing_is_folded_into_norms_and_linears(
    store: LocalStore, tiny_llama: Path, small_recipe: Fixture, run_steps: Fixture
) -> None:
    recipe = small_recipe(
        quantization={
            "method": "minmax",
            "weights": {"bits": 8, "group_size": -1},
            "activations": "int8",
        },
        outlier_suppression={"method": "smooth_quant", "options": {"alpha": 0.7}},
    )
    made = run_steps(store, recipe, tiny_llama)
    blocks = blocks_of(made)
    original = Checkpoint.open(FolderSource(tiny_llama))
    scales = load(bytes(store.read(made.smoothing.path("scales.safetensors"))))
    scale = scales["1.mlp.gate_proj"]
    prefix = "model.layers.1."
    norm = read_tensor(original, f"{prefix}post_attention_layernorm.weight").float()
    assert torch.equal(
        blocks[f"{prefix}post_attention_layernorm.weight"], (norm / scale).bfloat16()
    )
    weight = read_tensor(original, f"{prefix}mlp.up_proj.weight").float() * scale
    restored = (
        blocks[f"{prefix}mlp.up_proj.weight"].float()
        * blocks[f"{prefix}mlp.up_proj.weight_scale"].float()
    )
    assert ((restored - weight).norm() / weight.norm()) < 0.01
    assert len(scales) == 8


def test_a_committed_range_is_not_computed_again(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: Fixture,
    run_steps: Fixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = run_steps(store, small_recipe(num_ranges=2), tiny_llama)
    monkeypatch.setattr("quantlib.steps.quantize._quantize_blocks", lambda *_: pytest.fail("ran"))
    again = run_steps(store, small_recipe(num_ranges=2), tiny_llama)
    assert again.checkpoint == made.checkpoint


def test_changed_hidden_states_are_noticed(
    store: LocalStore, tiny_llama: Path, small_recipe: Fixture, run_steps: Fixture
) -> None:
    made = run_steps(store, small_recipe(), tiny_llama)
    merged = merge(store, made.recipe, made.model, made.quantized)
    assert merged == made.checkpoint
    other = small_recipe(quantization={"weights": {"bits": 8, "group_size": 32}})
    changed = quantize(store, other, "0:4", made.model, made.calibration, made.smoothing, "cpu")
    assert changed.key != made.quantized[0].key
