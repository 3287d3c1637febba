"""The layout that names and shapes suggest, against the one that the walk finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import headers
import pytest
import zoo

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import TensorInfo
from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError, Problem
from quantlib.formats.stored import plain
from quantlib.models import BaseHuggingFaceAdapter, Layout, open_model
from quantlib.models.by_names import layout_of_names
from quantlib.models.naming import FEW_OUTPUTS, NO_LINEAR

HIDDEN = 256
ATTENTION = {
    "attn.q_proj": (256, HIDDEN),
    "attn.k_proj": (128, HIDDEN),
    "attn.v_proj": (128, HIDDEN),
    "attn.o_proj": (HIDDEN, 256),
}
MLP = {"mlp.gate_proj": (512, HIDDEN), "mlp.up_proj": (512, HIDDEN), "mlp.down_proj": (HIDDEN, 512)}
OUTER = {
    "tok_embed.weight": (1000, HIDDEN),
    "norm.weight": (HIDDEN,),
    "lm_head.weight": (1000, HIDDEN),
}


def weights(linears: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape for name, shape in linears.items()}


def checkpoint(
    shapes: dict[str, tuple[int, ...]], config: dict[str, Any] | None = None
) -> Checkpoint:
    tensors = {name: TensorInfo(name, "BF16", shape, "", 0, 0) for name, shape in shapes.items()}
    return Checkpoint(FolderSource(Path()), config or {}, tensors)


def layout(
    blocks: list[dict[str, tuple[int, ...]]],
    outer: dict[str, tuple[int, ...]] = OUTER,
    **config: Any,
) -> Layout:
    shapes = dict(outer)
    for number, block in enumerate(blocks):
        shapes |= {f"layers.{number}.{name}": shape for name, shape in block.items()}
    return layout_of_names(checkpoint(shapes, config), [])


@pytest.mark.parametrize(
    "family",
    [
        *("llama", "gemma3_text", "phi3", "mixtral", "qwen3_5_moe", "deepseek_v3", "gpt_oss"),
        *("llama4_text", "nemotron_h", "lfm2_moe", "hunyuan_v1_moe", "falcon_h1", "kimi_linear"),
        *("gemma3n", "qwen3_vl", "gemma4_images", "mistral3_images"),
    ],
)
def test_the_linears_are_those_that_the_walk_finds(family: str, tmp_path: Path) -> None:
    source = FolderSource(zoo.make(family, tmp_path / "m"))
    _, walked = open_model(source, folds=False)
    raw = plain(Checkpoint.open(source))
    found = layout_of_names(raw, [])
    named = type(walked)(raw.config, found)
    for part in ("prefix", "blocks", "embedding", "head", "tied"):
        assert getattr(found, part) == getattr(walked.layout, part), part
    for block in range(found.blocks):
        linears = {name: named.linear_shape(block, name) for name in named.linears(block)}
        assert linears == {name: walked.linear_shape(block, name) for name in walked.linears(block)}
        for mine, theirs in zip(
            found.kind(block).experts, walked.layout.kind(block).experts, strict=False
        ):
            assert (mine.count, mine.transposed) == (theirs.count, theirs.transposed)


def test_what_stays_exact_and_why() -> None:
    block = weights(ATTENTION) | weights(MLP)
    block |= {
        "mlp.gate.weight": (8, HIDDEN),  # of a block without experts: an odd MLP
        "attn.g_proj.weight": (8, HIDDEN),
        "attn.q_norm.weight": (64,),
        "conv.conv1d.weight": (256, 1, 4),
        "attn.rel_pos_embed.weight": (64, 64),
        "router_probe.weight": (64, HIDDEN),
        "attn.decay": (64, 64),
    }
    (kind,) = layout([block, block]).kinds
    assert set(kind.shapes) == {*ATTENTION, *MLP}
    assert kind.exact == {
        "mlp.gate": FEW_OUTPUTS,
        "attn.g_proj": FEW_OUTPUTS,
        "conv.conv1d": NO_LINEAR,
        "attn.rel_pos_embed": "is no linear, by its name: embedding",
        "router_probe": "chooses experts, by its name",
    }
    assert [shared.linears for shared in kind.inputs] == [
        ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        ("attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    ]


def test_a_router_has_an_output_for_each_expert() -> None:
    block = weights(ATTENTION) | {"mlp.gate.weight": (40, HIDDEN)}
    for expert in range(40):
        block[f"mlp.experts.{expert}.up.weight"] = (64, HIDDEN)
        block[f"mlp.experts.{expert}.w2.weight"] = (HIDDEN, 64)
    (kind,) = layout([block]).kinds
    assert kind.exact == {"mlp.gate": "chooses experts: one output each"}
    assert [(shared.linears, shared.experts) for shared in kind.inputs[-2:]] == [
        (("mlp.experts.*.up",), 40),
        (("mlp.experts.*.w2",), 40),
    ]


def test_an_expert_that_is_missing() -> None:
    block = {f"mlp.experts.{expert}.up_proj.weight": (64, HIDDEN) for expert in (0, 1, 3)}
    with pytest.raises(InvalidInputError) as caught:
        layout([weights(ATTENTION) | block])
    (problem,) = caught.value.problems
    assert (
        str(problem) == "layers.0.mlp.experts.2.up_proj.weight: the checkpoint has no such tensor"
    )


@pytest.mark.parametrize(
    ("stacks", "transposed"),
    [
        ({"gate_up_proj": (8, 192, HIDDEN), "down_proj": (8, HIDDEN, 96)}, False),
        ({"gate_up_proj": (8, HIDDEN, 192), "down_proj": (8, 96, HIDDEN)}, True),
        # The same numbers of channels everywhere: the fused one says which is which.
        ({"gate_up_proj": (8, 512, HIDDEN), "down_proj": (8, HIDDEN, 256)}, False),
        ({"gate_up_proj": (8, HIDDEN, 512), "down_proj": (8, 256, HIDDEN)}, True),
        ({"w1.weight": (8, 96, HIDDEN), "w2.weight": (8, HIDDEN, 96)}, False),
        ({"w1.weight": (8, HIDDEN, 96), "w2.weight": (8, 96, HIDDEN)}, True),
        ({"up_proj": (8, HIDDEN, HIDDEN), "down_proj": (8, HIDDEN, HIDDEN)}, None),
    ],
)
def test_which_way_stacked_experts_lie(
    stacks: dict[str, tuple[int, ...]], transposed: bool | None
) -> None:
    block = {f"mlp.experts.{name}": shape for name, shape in stacks.items()}
    (kind,) = layout([weights(ATTENTION) | block]).kinds
    if transposed is None:
        assert not kind.experts
        assert "which side is the input cannot be told" in kind.exact["mlp.experts.up_proj"]
        return
    (experts,) = kind.experts
    assert (experts.count, experts.transposed) == (8, transposed)
    down = next(name for name in kind.shapes if "down" in name or "w2" in name)
    assert kind.shapes[down][0] == HIDDEN


def test_layers_for_drafting_stay_out_of_the_blocks() -> None:
    block = weights(ATTENTION) | weights(MLP)
    drafting = {**block, "eh_proj.weight": (HIDDEN, 2 * HIDDEN)}
    numbered_on = layout([block, block, drafting], num_hidden_layers=2)
    assert (numbered_on.blocks, len(numbered_on.kinds)) == (2, 1)
    assert list(numbered_on.outside) == ["layers.2."]
    wrapped = layout(
        [block, block, drafting], text_config={"num_hidden_layers": 2}, num_hidden_layers=3
    )
    assert wrapped.blocks == 2
    apart = OUTER | {f"mtp.0.{name}": shape for name, shape in drafting.items()}
    found = layout([block, block], apart)
    assert (found.blocks, list(found.outside)) == (2, ["mtp."])


def test_the_blocks_are_where_most_weights_are() -> None:
    block = weights(ATTENTION) | weights(MLP)
    tower = {f"vision.layers.{n}.fc1.weight": (64, 64) for n in range(30)}
    found = layout([block, block], OUTER | tower | {"vision.patch_embed.weight": (64, 3, 8, 8)})
    assert (found.prefix, found.blocks, found.embedding) == ("layers.{}.", 2, "tok_embed")
    assert found.outside == {"vision.": "lies outside of the blocks"}


def test_no_blocks() -> None:
    with pytest.raises(InvalidInputError) as caught:
        layout_of_names(checkpoint(weights(MLP)), [Problem("config.json", "is odd")])
    assert [str(problem) for problem in caught.value.problems] == [
        "config.json: is odd",
        "the checkpoint: shows no blocks: of 3 tensors (mlp.gate_proj.weight, mlp.up_proj.weight, "
        "mlp.down_proj.weight) none is a matrix in a numbered module, as "
        "model.layers.0.mlp.up_proj.weight is",
    ]


def test_deepseek_v3_under_another_name() -> None:
    tensors = {
        name.replace("model.layers", "net.h"): shape
        for name, _, shape in headers.deepseek_v3()
        if not name.endswith("_scale_inv")
    }
    config = headers.DEEPSEEK_V3 | {"model_type": "tomorrow_lm", "architectures": ["Tomorrow"]}
    found = layout_of_names(checkpoint(tensors, config), [])
    assert (found.blocks, len(found.kinds), found.kind_of.count(1)) == (61, 2, 58)
    adapter = BaseHuggingFaceAdapter(replace(checkpoint({}), config=config).config, found)
    assert len(adapter.linears(60)) == 4 + 3 * 257
    assert set(adapter.kept_exact(60)) == {"mlp.gate", "self_attn.kv_b_proj"}
    assert set(found.outside) == {"net.h.61."}
