"""Every recipe that ships, planned and quantized on a tiny mixture of experts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import read_tensor
from quantlib.checks.recipe_choice import chosen_recipe, shipped_recipes
from quantlib.errors import InvalidInputError
from quantlib.formats import format_registry
from quantlib.formats.dequantize import dequantized_state
from quantlib.manager import QuantizationManager
from quantlib.store import LocalStore

W4 = "W4A16 in groups of 128"
ATTENTION_AND_EXPERTS = {
    "awq": ("W4A16_ASYM in groups of 128",) * 2,
    "fp8": ("FP8_DYNAMIC",) * 2,
    "fp8_block": ("FP8_BLOCK",) * 2,
    "gptq": (W4, W4),
    "hqq": ("W4A16_ASYM in groups of 64",) * 2,
    "minmax": ("W4A16_ASYM in groups of 32",) * 2,
    "mixed": ("FP8_DYNAMIC", W4),
    "nvfp4": ("NVFP4",) * 2,
    "nvfp4_experts": ("FP8_DYNAMIC", "NVFP4"),
    "release": (W4, W4),
    "smooth_quant": ("W8A8",) * 2,
    "w4_experts": (None, W4),
}
"""What docs/practice.md says that they do."""

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
FEW = {"calibration": {"num_samples": 4, "sequence_length": 32, "min_expert_tokens": 1}}
BLOCK = "model.layers.1."
ROUTER = f"{BLOCK}mlp.gate"
LINEARS = (f"{BLOCK}self_attn.q_proj", f"{BLOCK}mlp.experts.3.down_proj")


@pytest.fixture(scope="module")
def mixture(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("m") / "mixture", "qwen3_moe", **SIZES)


def test_each_has_its_row() -> None:
    assert shipped_recipes().keys() == ATTENTION_AND_EXPERTS.keys()


@pytest.mark.parametrize("name", ATTENTION_AND_EXPERTS)
def test_linears_are_in_the_schemes_that_it_says(name: str, mixture: Path, tmp_path: Path) -> None:
    manager = QuantizationManager(
        chosen_recipe(name, changes=FEW), str(mixture), LocalStore(tmp_path / "store"), "cpu"
    )
    result = manager.quantize(validated=False)
    manager.save(result, tmp_path / "out")
    config: dict[str, Any] = json.loads((tmp_path / "out" / "config.json").read_text())
    stated = config["quantization_config"]
    scheme_of = format_registry.get_format(stated["quant_method"]).read_schemes(stated)
    found = [scheme_of(linear) for linear in LINEARS]
    words = tuple(None if scheme is None else scheme.words for scheme in found)
    assert words == ATTENTION_AND_EXPERTS[name]
    assert scheme_of(ROUTER) is None
    original = Checkpoint.open(FolderSource(mixture))
    state = dict(dequantized_state(Checkpoint.open(FolderSource(tmp_path / "out"))))
    assert state.keys() == original.tensors.keys()
    if name not in ("awq", "nvfp4", "smooth_quant"):  # which fold scales into them
        for linear, scheme in zip(LINEARS, found, strict=True):
            weight = read_tensor(original, f"{linear}.weight").float()
            error = (state[f"{linear}.weight"].float() - weight).norm() / weight.norm()
            expected = 0 if scheme is None else {4: 0.17, 8: 0.04}[scheme.weights.bits]
            assert expected / 4 <= error <= expected


@pytest.mark.parametrize("name", ["nvfp4_experts", "w4_experts"])
def test_those_for_experts_say_where_there_are_none(
    name: str, tiny_llama: Path, tmp_path: Path
) -> None:
    manager = QuantizationManager(
        chosen_recipe(name, changes=FEW), str(tiny_llama), LocalStore(tmp_path), "cpu"
    )
    with pytest.raises(InvalidInputError) as refused:
        manager.quantize(validated=False)
    assert "'experts' matches no linear of the model's blocks 0 to 3; kinds: attention, mlp" in str(
        refused.value
    )
