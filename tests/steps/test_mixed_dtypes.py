"""Checkpoints whose tensors are not all of one dtype: what changes keeps its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantlib.checkpoint.source import FolderSource, ReceiptSource
from quantlib.checkpoint.tensors import read_tensors
from quantlib.steps.smooth import SCALES_NAME
from quantlib.store import LocalStore

Fixture = Callable[..., Any]
SMOOTH: dict[str, dict[str, Any]] = {
    "quantization": {
        "method": "minmax",
        "weights": {"bits": 8, "group_size": -1},
        "activations": "int8",
    },
    "outlier_suppression": {"method": "smooth_quant"},
}
WALKED = SMOOTH | {"quantization": {**SMOOTH["quantization"], "method": "gptq"}}
AWQ = {"quantization": {"method": "awq"}}


@pytest.fixture(scope="module")
def mixed(make_model: Fixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Linears in bfloat16, norms and routers in float32, in digits that bfloat16 has not."""
    folder: Path = make_model(
        tmp_path_factory.mktemp("mixed") / "m",
        "qwen3_moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        mlp_only_layers=[0, 2],
    )
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if "norm" in name or name.endswith("mlp.gate.weight"):
            noise = torch.rand(tensor.shape, generator=generator)
            tensors[name] = tensor.float() * (1 + noise / 256)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("products", ["float32_products", "bfloat16_products"])
@pytest.mark.parametrize("changes", [SMOOTH, WALKED, AWQ], ids=["smooth_quant", "walked", "awq"])
def test_norms_and_routers_keep_their_dtype(
    store: LocalStore,
    mixed: Path,
    small_recipe: Fixture,
    run_steps: Fixture,
    request: pytest.FixtureRequest,
    products: str,
    changes: dict[str, Any],
) -> None:
    request.getfixturevalue(products)
    made = run_steps(store, small_recipe(**changes), mixed)
    blocks = read_tensors(ReceiptSource(store, made.quantized[0]), "blocks.safetensors")
    original = read_tensors(FolderSource(mixed), "model.safetensors")
    scales = {}
    if made.smoothing.files:
        scales = read_tensors(ReceiptSource(store, made.smoothing), SCALES_NAME)
    changed = set()
    plain = {name for name in blocks.keys() & original.keys() if blocks[name].dtype != torch.int8}
    for name in plain:
        assert blocks[name].dtype is original[name].dtype, name
        if torch.equal(blocks[name], original[name]):
            continue
        changed.add(name.split(".", 3)[3])
        assert blocks[name].dtype is torch.float32
        assert not torch.equal(blocks[name].bfloat16().float(), blocks[name])
        if scales:
            block, norm = name.removeprefix("model.layers.").split(".", 1)
            linear = "self_attn.q_proj" if norm.startswith("input") else "mlp.gate_proj"
            exact = original[name] / scales[f"{block}.{linear}"]
            torch.testing.assert_close(blocks[name], exact, rtol=1e-6, atol=0)
    assert changed == {"input_layernorm.weight", "post_attention_layernorm.weight"}
    router = "model.layers.1.mlp.gate.weight"
    assert blocks[router].dtype is torch.float32
