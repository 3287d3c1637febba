"""Mixtures of experts: both layouts on disk, the arithmetic, and what the walk hands out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import read_tensor
from quantlib.errors import InvalidInputError
from quantlib.models import model_registry, open_model
from quantlib.models.decoder import DecoderBlock, finish
from quantlib.models.moe import MixtureBlock

pytestmark = pytest.mark.usefixtures("float32_products")
MakeModel = Callable[..., Path]
LENGTH = 96
MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", MIXTRAL),
    "mixtral-sliding": ("mixtral", MIXTRAL | {"sliding_window": 16}),
    "qwen3_moe": ("qwen3_moe", QWEN | {"norm_topk_prob": True}),
    "qwen3_moe-not-normalized": ("qwen3_moe", QWEN | {"norm_topk_prob": False}),
    "qwen3_moe-mlp-only": ("qwen3_moe", QWEN | {"mlp_only_layers": [0, 2]}),
    "qwen3_moe-step": ("qwen3_moe", QWEN | {"decoder_sparse_step": 2}),
}


def tokens() -> Tensor:
    return torch.randint(0, 512, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("stacked", [False, True], ids=["matrices", "stacked"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_blocks_equal_those_of_transformers(
    case: str, stacked: bool, make_model: MakeModel, tmp_path: Path
) -> None:
    model_type, config = CASES[case]
    folder = make_model(
        tmp_path / "m", model_type, dtype="float32", stacked_experts=stacked, **config
    )
    names = Checkpoint.open(FolderSource(folder)).tensors
    assert ("model.layers.3.mlp.experts.gate_up_proj" in names) == stacked
    checkpoint, adapter = open_model(FolderSource(folder))
    assert adapter.problems(checkpoint) == []
    model = adapter.load_model(checkpoint, torch.device("cpu"))

    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected: list[Tensor] = []
    for layer in reference.model.layers:
        layer.register_forward_hook(lambda _, __, output: expected.append(output))
    reference(tokens())

    hidden = model.embed(tokens())
    for index in range(adapter.blocks):
        block = model.block(index)
        dense = not hasattr(reference.model.layers[index].mlp, "experts")
        assert isinstance(block, MixtureBlock) != dense
        hidden = block.forward(hidden)
        torch.testing.assert_close(hidden, expected[index], rtol=5e-4, atol=5e-4)


def test_both_layouts_are_one_checkpoint(make_model: MakeModel, tmp_path: Path) -> None:
    for model_type, config in (
        ("mixtral", MIXTRAL),
        ("qwen3_moe", QWEN | {"mlp_only_layers": [1]}),
    ):
        single, stacked = (
            open_model(
                FolderSource(
                    make_model(
                        tmp_path / f"{model_type}-{layout}",
                        model_type,
                        stacked_experts=layout == "stacked",
                        **config,
                    )
                )
            )[0]
            for layout in ("matrices", "stacked")
        )
        assert set(single.tensors) == set(stacked.tensors)
        for name in single.tensors:
            assert torch.equal(read_tensor(single, name), read_tensor(stacked, name)), name


def test_an_expert_is_read_by_its_own_bytes(make_model: MakeModel, tmp_path: Path) -> None:
    reads: list[tuple[int, int | None]] = []

    class Watched(FolderSource):
        def read(self, name: str, offset: int = 0, length: int | None = None) -> bytearray:
            reads.append((offset, length))
            return super().read(name, offset, length)

    folder = make_model(tmp_path / "m", "qwen3_moe", stacked_experts=True, **QWEN)
    checkpoint, _ = open_model(Watched(folder))
    whole = Checkpoint.open(FolderSource(folder)).info("model.layers.1.mlp.experts.gate_up_proj")
    assert whole.shape == (8, 64, 64)
    reads.clear()
    read_tensor(checkpoint, "model.layers.1.mlp.experts.3.up_proj.weight")
    matrix = 32 * 64 * 2
    assert reads == [(whole.start + (2 * 3 + 1) * matrix, matrix)]


@torch.no_grad()
def test_the_walk_gives_each_expert_its_tokens(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "qwen3_moe", dtype="float32", **QWEN)
    checkpoint, adapter = open_model(FolderSource(folder))
    block = adapter.load_model(checkpoint, torch.device("cpu")).block(0)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    entering: list[Tensor] = []
    reference.model.layers[0].mlp.register_forward_pre_hook(lambda _, x: entering.append(x[0]))
    chosen: list[Tensor] = []
    reference.model.layers[0].mlp.gate.register_forward_hook(
        lambda _, __, output: chosen.append(output[2])
    )
    reference(tokens())
    x = entering[0].flatten(0, 1)
    seen: dict[str, Tensor] = {}
    block.forward(reference.model.embed_tokens(tokens()), lambda g, x: seen.update({g.name: x}))
    for expert in range(8):
        rows = (chosen[0] == expert).any(-1)
        torch.testing.assert_close(seen[f"expert_{expert}_input"], x[rows], rtol=1e-4, atol=1e-4)
        assert len(seen[f"expert_{expert}_output"]) == int(rows.sum())
    assert sum(len(seen[f"expert_{expert}_input"]) for expert in range(8)) == 3 * 2 * LENGTH


@torch.no_grad()
def test_a_walk_gives_all_tokens_when_asked(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "mixtral", dtype="float32", **MIXTRAL)
    checkpoint, adapter = open_model(FolderSource(folder))
    model = adapter.load_model(checkpoint, torch.device("cpu"))
    block, hidden = model.block(0), model.embed(tokens())
    plain = block.forward(hidden)
    walk = block.walk(hidden)
    everything: dict[str, Tensor] = {}
    for group in block.groups:
        given, _ = next(walk)
        assert given is group
        if group.expert is not None:
            again, everything[group.name] = walk.send(True)
            assert again is group
    assert torch.equal(finish(walk), plain)
    entering = everything["expert_0_input"]
    assert all(torch.equal(everything[f"expert_{n}_input"], entering) for n in range(4))
    weights = {
        name: block.tensors[f"block_sparse_moe.experts.2.{name}.weight"] for name in ("w1", "w3")
    }
    expected = torch.nn.functional.silu(entering @ weights["w1"].t()) * (
        entering @ weights["w3"].t()
    )
    torch.testing.assert_close(everything["expert_2_output"], expected, rtol=1e-4, atol=1e-4)


def test_only_experts_and_attention_are_linears(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "qwen3_moe", **QWEN | {"mlp_only_layers": [1]})
    _, adapter = open_model(FolderSource(folder))
    assert adapter.routers(0) == ("mlp.gate",)
    assert adapter.routers(1) == ()
    assert not set(adapter.routers(0)) & set(adapter.linears(0))
    assert len(adapter.linears(0)) == 4 + 3 * 8
    assert "mlp.up_proj" in adapter.linears(1)
    producers = {group.name: group.producer for group in adapter.groups(0)}
    assert producers["expert_5_input"] is None
    assert producers["expert_5_output"].name == "mlp.experts.5.up_proj"


def test_config_faults_are_named_together() -> None:
    config = {"model_type": "mixtral", "hidden_size": 64, "num_experts_per_tok": 0}
    with pytest.raises(InvalidInputError) as caught:
        model_registry.adapter_for(config)
    for field in ("num_local_experts", "num_experts_per_tok", "vocab_size", "intermediate_size"):
        assert field in str(caught.value)
    whole = {
        "model_type": "qwen3_moe",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 100,
    } | QWEN
    with pytest.raises(InvalidInputError, match="9 experts"):
        model_registry.adapter_for(whole | {"num_experts": 9, "num_experts_per_tok": 10})
    with pytest.raises(InvalidInputError, match="shared experts"):
        model_registry.adapter_for(whole | {"shared_expert_intermediate_size": 64})


def test_misshapen_and_missing_experts(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "stacked", "qwen3_moe", stacked_experts=True, **QWEN)
    checkpoint = Checkpoint.open(FolderSource(folder))
    adapter = model_registry.adapter_for(dict(checkpoint.config) | {"moe_intermediate_size": 64})
    problems = [str(problem) for problem in adapter.problems(adapter.arranged(checkpoint))]
    (line,) = problems
    assert "experts.gate_up_proj: has shape [8, 64, 64]; the config says [8, 128, 64]" in line
    assert "and so with 7 more: " in line
    folder = make_model(tmp_path / "single", "mixtral", **MIXTRAL)
    checkpoint = Checkpoint.open(FolderSource(folder))
    adapter = model_registry.adapter_for(dict(checkpoint.config) | {"num_local_experts": 5})
    problems = [str(problem) for problem in adapter.problems(adapter.arranged(checkpoint))]
    name = "model.layers.0.block_sparse_moe.experts.4.w1.weight"
    assert f"{name}: the checkpoint has no such tensor, and so with " in problems[0]


def test_dense_families_are_as_they_were(tiny_llama: Path) -> None:
    checkpoint, adapter = open_model(FolderSource(tiny_llama))
    assert checkpoint.tensors == Checkpoint.open(FolderSource(tiny_llama)).tensors
    assert adapter.routers(0) == ()
    block = adapter.load_model(checkpoint, torch.device("cpu")).block(0)
    assert type(block) is DecoderBlock
