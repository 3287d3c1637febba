"""Mixtures of experts: arithmetic, layouts on disk, routing, and what is said of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from quantlib.checkpoint.source import FolderSource
from quantlib.compatibility import model_problems
from quantlib.models import open_model
from quantlib.quantizers import GPTQQuantizer
from quantlib.quantizers.block import quantize_block
from quantlib.recipe import QuantizationSection, WeightScheme

FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "mlp_only_layers": [1],
        "norm_topk_prob": True,
    },
}
FUSED = ("gate_up_proj", "down_proj")


@pytest.fixture(params=FAMILIES)
def folder(request: Any, make_model: Callable[..., Path], tmp_path: Path) -> Path:
    family = request.param
    return make_model(tmp_path / "model", family, dtype="float32", **FAMILIES[family])


def opened(folder: Path) -> tuple[Any, Any]:
    checkpoint, adapter = open_model(FolderSource(folder))
    return adapter, adapter.load_model(checkpoint, torch.device("cpu"))


def fuse_experts(folder: Path) -> None:
    """Rewrites the weights as transformers holds them in memory."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
def test_blocks_equal_those_of_transformers(folder: Path, fused: bool) -> None:
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if fused:
        fuse_experts(folder)
        names = load_file(folder / "model.safetensors")
        assert any(name.endswith(FUSED) for name in names)
    adapter, model = opened(folder)
    assert adapter.problems(model.checkpoint) == []
    tokens = torch.randint(0, 512, (2, 48), generator=torch.Generator().manual_seed(1))
    expected: list[torch.Tensor] = []
    for layer in reference.model.layers:
        layer.register_forward_hook(lambda _, __, output: expected.append(output))
    reference(tokens)
    hidden = model.embed(tokens)
    for index in range(adapter.blocks):
        hidden = model.block(index).forward(hidden)
        torch.testing.assert_close(hidden, expected[index], rtol=5e-4, atol=5e-4)


def quantized(folder: Path, min_expert_tokens: int) -> tuple[Any, torch.Tensor]:
    """The first block quantized, and the tokens that it saw."""
    _, model = opened(folder)
    section = QuantizationSection(weights=WeightScheme(bits=4, group_size=32))
    tokens = torch.randint(0, 512, (6, 32), generator=torch.Generator().manual_seed(2))
    batches = list(model.embed(tokens).float().split(2))
    made = quantize_block(
        model.block(0),
        batches,
        GPTQQuantizer(section),
        (),
        torch.float32,
        min_expert_tokens=min_expert_tokens,
    )
    return made, tokens


@pytest.mark.usefixtures("float32_products")
@torch.no_grad()
def test_tokens_are_counted_expert_by_expert(folder: Path) -> None:
    made, tokens = quantized(folder, 0)
    counts = {
        error.linear: error.expert_tokens for error in made.errors if ".experts." in error.linear
    }
    assert len(counts) == 12
    # The attention before the router is quantized, so that a few tokens may choose otherwise.
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    chosen: list[torch.Tensor] = []
    reference.model.layers[0].mlp.gate.register_forward_hook(
        lambda _, __, output: chosen.append(output[2])
    )
    reference(tokens)
    for linear, count in counts.items():
        expert = int(linear.split(".experts.")[1].split(".")[0])
        assert count == pytest.approx(int((chosen[0] == expert).sum()), abs=12)
    inputs = [count for linear, count in counts.items() if linear.endswith(("w1", "gate_proj"))]
    assert sum(inputs) == 2 * tokens.numel()
    assert {error.calibrated_on for error in made.errors} == {None, "routed"}
    assert all(error.expert_tokens is None for error in made.errors if "self_attn" in error.linear)


@pytest.mark.usefixtures("float32_products")
@torch.no_grad()
def test_experts_that_see_too_little_are_calibrated_on_all_tokens(folder: Path) -> None:
    made, tokens = quantized(folder, 10_000)
    few, _ = quantized(folder, 0)
    experts = [error for error in made.errors if ".experts." in error.linear]
    assert experts
    assert all(error.calibrated_on == "all" for error in experts)
    assert all(0 <= (error.expert_tokens or 0) <= tokens.numel() for error in experts)
    # Another Hessian gives other codes.
    name = experts[0].linear
    assert not torch.equal(made.linears[name].codes, few.linears[name].codes)


def test_routers_are_exact_and_experts_are_fused(folder: Path) -> None:
    from quantlib.compatibility import checkpoint_scheme
    from quantlib.recipe import Recipe

    adapter, model = opened(folder)
    weights = WeightScheme(bits=4, group_size=32)
    scheme = checkpoint_scheme(QuantizationSection(weights=weights), adapter)
    (router,) = adapter.routers(0)
    assert adapter.linear_name(0, router) in scheme.exact
    pattern = r"re:layers\.0\..*experts\.1\."
    section = QuantizationSection(weights=weights, ignore=(pattern,))
    recipe = Recipe(quantization=section).model_copy(
        update={"validation": Recipe().validation.model_copy(update={"sequence_length": 64})}
    )
    problems = [str(problem) for problem in model_problems(recipe, model.checkpoint, adapter)]
    assert any("which vLLM fuses into" in problem and ".experts" in problem for problem in problems)


def test_one_expert_is_read_at_a_time_from_a_fused_tensor(folder: Path) -> None:
    plain, _ = open_model(FolderSource(folder))
    weights = {name: bytes(plain.read(name)) for name in plain.tensors if ".experts." in name}
    fuse_experts(folder)
    fused, _ = open_model(FolderSource(folder))
    assert set(fused.tensors) == set(plain.tensors)
    for name, data in weights.items():
        assert bytes(fused.read(name)) == data
        assert fused.info(name).shape == plain.info(name).shape
