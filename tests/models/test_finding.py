"""What is found out of a model, against what is known of its family."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file

from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError
from quantlib.models import Layout, open_model
from quantlib.models.finding import FEW_OUTPUTS, NO_LINEAR

Found = dict[tuple[str, ...], Any]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Layout]]:
    """Filled as tests ask for families."""
    folder = tmp_path_factory.mktemp("zoo")

    class Layouts(dict[str, Layout]):
        def __missing__(self, family: str) -> Layout:
            _, adapter = open_model(FolderSource(zoo.make(family, folder / family)))
            self[family] = adapter.layout
            return adapter.layout

    return Layouts()


def norm(name: str, offset: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"name": name, "norm": True, **({"offset": offset} if offset else {}), **more}


def linear(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, **more}


HEADS = {"head_dim": 64, "repeats": 2}
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
O = ("self_attn.o_proj",)  # noqa: E741
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
DOWN = ("mlp.down_proj",)
FULL_ATTENTION = {QKV: norm("input_layernorm"), O: linear("self_attn.v_proj", **HEADS)}
EXPERTS = {
    ("mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"): None,
    ("mlp.experts.*.down_proj",): linear("mlp.experts.*.up_proj"),
}
SHARED_EXPERT = {
    ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"): None,
    ("mlp.shared_expert.down_proj",): linear("mlp.shared_expert.up_proj"),
}
LATENT = {
    ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"): norm("input_layernorm"),
    ("self_attn.q_b_proj",): norm("self_attn.q_a_layernorm"),
    ("self_attn.kv_b_proj",): norm("self_attn.kv_a_layernorm"),
    O: None,  # head_dim of v is not that of q
}
MLP = {GATE_UP: norm("post_attention_layernorm"), DOWN: linear("mlp.up_proj")}
GEMMA3 = {
    QKV: norm("input_layernorm", 1.0),
    O: linear("self_attn.v_proj", **HEADS),
    GATE_UP: norm("pre_feedforward_layernorm", 1.0),
    DOWN: linear("mlp.up_proj"),
}


@pytest.mark.parametrize(
    ("family", "block", "expected"),
    [
        ("llama", 1, FULL_ATTENTION | MLP),
        ("gemma3_text", 0, GEMMA3),
        ("gemma3_images", 3, GEMMA3),
        (
            "phi3",  # v and up are parts of fused linears
            0,
            {
                ("self_attn.qkv_proj",): norm("input_layernorm"),
                O: linear("self_attn.qkv_proj", first_row=384, **HEADS),
                ("mlp.gate_up_proj",): norm("post_attention_layernorm"),
                DOWN: linear("mlp.gate_up_proj", first_row=512),
            },
        ),
        (
            "mixtral",  # the router reads what the experts read
            0,
            FULL_ATTENTION
            | {
                ("block_sparse_moe.experts.*.w1", "block_sparse_moe.experts.*.w3"): None,
                ("block_sparse_moe.experts.*.w2",): linear("block_sparse_moe.experts.*.w3"),
            },
        ),
        (
            "gpt_oss",  # what comes from up is clamped
            0,
            FULL_ATTENTION | dict.fromkeys(EXPERTS),
        ),
        (
            "qwen3_5_moe",  # gates and decays read the input of qkv; heads share a norm
            0,
            {
                ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z"): None,
                ("linear_attn.out_proj",): norm("linear_attn.norm", head_dim=64, repeats=4),
            }
            | SHARED_EXPERT
            | EXPERTS,
        ),
        (
            "qwen3_5_moe",
            3,
            {QKV: norm("input_layernorm", 1.0), O: linear("self_attn.v_proj", **HEADS)}
            | SHARED_EXPERT
            | EXPERTS,
        ),
        ("deepseek_v3", 0, LATENT | MLP),
        (
            "deepseek_v3",
            2,
            LATENT
            | EXPERTS
            | {
                ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"): None,
                ("mlp.shared_experts.down_proj",): linear("mlp.shared_experts.up_proj"),
            },
        ),
        (
            "lfm2",  # a convolution leaves channels apart
            0,
            {
                ("conv.in_proj",): norm("operator_norm"),
                ("conv.out_proj",): linear("conv.in_proj", first_row=512),
                ("feed_forward.w1", "feed_forward.w3"): norm("ffn_norm"),
                ("feed_forward.w2",): linear("feed_forward.w3"),
            },
        ),
        (
            "olmo3",  # its norms come after
            0,
            {
                QKV: None,
                O: linear("self_attn.v_proj", **HEADS),
                GATE_UP: None,
                DOWN: linear("mlp.up_proj"),
            },
        ),
    ],
)
def test_shared_inputs_and_what_gives_them(
    layouts: dict[str, Layout], family: str, block: int, expected: Found
) -> None:
    kind = layouts[family].kind(block)
    found = {
        shared.linears: shared.producer and shared.producer.model_dump(exclude_defaults=True)
        for shared in kind.inputs
    }
    assert found == expected
    assert list(found) == list(expected)  # in the order of computation
    assert all(shared.name == shared.linears[0] for shared in kind.inputs)
    assert set(kind.shapes) == {name for linears in found for name in linears}


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", {}),
        ("mixtral", {"block_sparse_moe.gate": NO_LINEAR}),
        (
            "qwen3_5_moe",
            {
                "linear_attn.in_proj_b": FEW_OUTPUTS,
                "linear_attn.in_proj_a": FEW_OUTPUTS,
                "linear_attn.conv1d": NO_LINEAR,
                "mlp.shared_expert_gate": FEW_OUTPUTS,
                "mlp.gate": NO_LINEAR,
            },
        ),
    ],
)
def test_gates_stay_exact(
    layouts: dict[str, Layout], family: str, expected: dict[str, str]
) -> None:
    assert layouts[family].kind(0).exact == expected


@pytest.mark.parametrize(
    ("family", "prefix", "embedding", "head"),
    [
        ("llama", "model.layers.{}.", "model.embed_tokens", "lm_head"),
        (
            "gemma3_images",
            "language_model.model.layers.{}.",
            "language_model.model.embed_tokens",
            "lm_head",
        ),
        (
            "mistral3_images",
            "language_model.model.layers.{}.",
            "language_model.model.embed_tokens",
            "language_model.lm_head",
        ),
        ("nemotron_h", "backbone.layers.{}.", "backbone.embeddings", "lm_head"),
    ],
)
def test_names_are_those_of_the_checkpoint(
    layouts: dict[str, Layout], family: str, prefix: str, embedding: str, head: str
) -> None:
    layout = layouts[family]
    assert (layout.prefix, layout.embedding, layout.head) == (prefix, embedding, head)
    assert layout.renamed == {}


@pytest.mark.parametrize(
    ("family", "kinds", "axes", "embeds_cross"),
    [
        ("llama", (0, 0), {}, False),
        ("deepseek_v3", (0, 1, 1), {}, False),
        ("nemotron_h", (0, 1, 2, 3), {}, False),
        ("gemma3n", (0, 0, 0, 0, 1, 1), {"hidden": 1}, True),
        ("gemma4_e2b", (0, 0, 0, 0, 1, 1), {}, True),
    ],
)
def test_kinds_of_blocks_and_what_crosses_between_them(
    layouts: dict[str, Layout],
    family: str,
    kinds: tuple[int, ...],
    axes: dict[str, int],
    embeds_cross: bool,
) -> None:
    layout = layouts[family]
    assert layout.kind_of == kinds
    assert (layout.axes, layout.embeds_cross) == (axes, embeds_cross)


def test_experts_are_found_where_the_checkpoint_has_them(layouts: dict[str, Layout]) -> None:
    (mixtral,) = layouts["mixtral"].kind(0).experts
    assert (mixtral.module, mixtral.count) == ("mlp.experts", 8)
    assert mixtral.parts == {
        "gate_up_proj": (
            "block_sparse_moe.experts.*.w1.weight",
            "block_sparse_moe.experts.*.w3.weight",
        ),
        "down_proj": ("block_sparse_moe.experts.*.w2.weight",),
    }
    (stacked,) = layouts["gpt_oss"].kind(0).experts
    assert stacked.parts["down_proj"] == ("mlp.experts.down_proj",)
    (split,) = layouts["qwen3_5_moe"].kind(0).experts  # stacked in the file, by no name of its own
    assert split.parts["down_proj"] == ("mlp.experts.*.down_proj.weight",)
    named = [shared.name for shared in layouts["mixtral"].inputs(0)]
    assert named[2:5] == [
        "block_sparse_moe.experts.0.w1",
        "block_sparse_moe.experts.0.w2",
        "block_sparse_moe.experts.1.w1",
    ]
    assert len(named) == 2 + 2 * 8


def test_a_layout_is_data(layouts: dict[str, Layout], tmp_path: Path) -> None:
    for family in ("mixtral", "gemma3n"):
        layout = layouts[family]
        assert Layout.model_validate_json(layout.model_dump_json()) == layout
    folder = zoo.make("llama", tmp_path / "m")
    _, adapter = open_model(FolderSource(folder), layouts["llama"])
    assert adapter.layout is layouts["llama"]


def test_faults_of_all_kinds_are_named_at_once(tmp_path: Path) -> None:
    folder = zoo.make("llama", tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    state["model.norm.weight"] = torch.ones(255)
    state["model.layers.0.mlp.gate_proj.bias"] = torch.ones(512)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(32)  # old ones have it
    state["another.part.weight"] = torch.ones(2)  # belongs to no block: copied as it is
    state["model.layers.2.eh_proj.weight"] = torch.ones(2)  # of a layer that drafts
    state["mtp.layers.0.norm.weight"] = torch.ones(2)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidInputError) as caught:
        open_model(FolderSource(folder))
    assert [str(problem) for problem in caught.value.problems] == [
        "model.layers.1.mlp.up_proj.weight: the checkpoint has no such tensor",
        "model.norm.weight: has shape [255]; the config says [256]",
        "model.layers.0.mlp.gate_proj.bias: is no tensor that a block of llama with this config "
        "has",
    ]
    state["model.norm.weight"] = torch.ones(256)
    state["model.layers.1.mlp.up_proj.weight"] = state["model.layers.0.mlp.up_proj.weight"].clone()
    del state["model.layers.0.mlp.gate_proj.bias"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    _, adapter = open_model(FolderSource(folder))
    assert set(adapter.layout.extra) == {
        "another.part.weight",
        "model.layers.2.eh_proj.weight",
        "mtp.layers.0.norm.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    }
    assert adapter.layout.carried() == {
        "another": 1,
        "model.layers.*": 1,
        "model.layers.2": 1,
        "mtp.layers.0": 1,
    }
