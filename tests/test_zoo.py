"""The tiny models are like the hub's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import zoo
from transformers import AutoConfig, AutoTokenizer

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource

W123 = ["w1.weight", "w2.weight", "w3.weight"]
PROJECTIONS = ["down_proj.weight", "gate_proj.weight", "up_proj.weight"]
STACKED = ["down_proj", "gate_up_proj"]

EXPERTS: dict[str, tuple[str, list[str]]] = {
    "mixtral": ("model.layers.1.block_sparse_moe.experts.7", W123),
    "minimax_m2": ("model.layers.1.block_sparse_moe.experts.7", W123),
    "kimi_linear": ("model.layers.1.block_sparse_moe.experts.7", W123),
    "lfm2_moe": ("model.layers.1.feed_forward.experts.7", W123),
    "nemotron_h": ("backbone.layers.1.mixer.experts.7", ["down_proj.weight", "up_proj.weight"]),
    "qwen3_5_moe": ("model.layers.1.mlp.experts", STACKED),
    "qwen3_5_moe_images": ("model.language_model.layers.1.mlp.experts", STACKED),
    "gemma4_moe": ("model.layers.1.experts", STACKED),
    "llama4_text": ("model.layers.1.feed_forward.experts", STACKED),
    "gpt_oss": (
        "model.layers.1.mlp.experts",
        ["down_proj", "down_proj_bias", "gate_up_proj", "gate_up_proj_bias"],
    ),
    "granitemoehybrid": (
        "model.layers.1.block_sparse_moe",
        ["input_linear.weight", "output_linear.weight", "router.layer.weight"],
    ),
}
"""Where a mixture has its experts on the hub, and the names there; the others below."""
EXPERTS |= dict.fromkeys(
    (
        *("qwen3_moe", "qwen3_next", "glm4_moe", "glm_moe_dsa", "deepseek_v3", "deepseek_v32"),
        *("ernie4_5_moe", "hunyuan_v1_moe"),
    ),
    ("model.layers.1.mlp.experts.7", PROJECTIONS),
)

BLOCKS = {
    "nemotron_h": "backbone.layers",
    "nemotron_h_dense": "backbone.layers",
    "gemma3_images": "language_model.model.layers",
    "mistral3_images": "language_model.model.layers",
    **dict.fromkeys(
        ("qwen3_vl", "qwen3_5_images", "qwen3_5_moe_images", "gemma4_images"),
        "model.language_model.layers",
    ),
}
"""Where the blocks of text are; ``model.layers`` for the others."""


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_every_family_is_written_as_the_hub_has_it(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(FolderSource(zoo.make(name, tmp_path)))
    blocks = BLOCKS.get(name, "model.layers")
    numbers = {
        int(match[1])
        for tensor in checkpoint.tensors
        if (match := re.match(rf"{re.escape(blocks)}\.(\d+)\.", tensor))
    }
    text = checkpoint.config.get("text_config", checkpoint.config)
    assert numbers == set(range(text["num_hidden_layers"]))
    assert {info.dtype for info in checkpoint.tensors.values()} <= {"BF16", "F32"}
    assert checkpoint.config.items() >= zoo.HUB_FIELDS.get(name, {}).items()
    read = AutoConfig.from_pretrained(tmp_path).get_text_config()
    assert read.num_hidden_layers == len(numbers)
    if name not in EXPERTS:
        assert not any("expert" in tensor for tensor in checkpoint.tensors)
        return
    experts, names = EXPERTS[name]
    found = [tensor for tensor in checkpoint.tensors if tensor.startswith(f"{experts}.")]
    assert sorted(tensor.removeprefix(f"{experts}.") for tensor in found) == names


def test_no_weight_is_what_a_model_starts_with(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(zoo.make("ernie4_5_moe", tmp_path) / "model.safetensors")
    for name, tensor in tensors.items():
        assert tensor.float().std() > 0.01, name
    assert any(name.endswith("e_score_correction_bias") for name in tensors)
    again = load_file(zoo.make("ernie4_5_moe", tmp_path / "again") / "model.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(tensor, again[name])


def test_a_tokenizer_takes_any_text_and_conversations(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo.make("llama", tmp_path, chat_template=True))
    tokens = tokenizer("naïve \u2603")["input_ids"]
    assert tokens[0] == tokenizer.bos_token_id == 1
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "naïve \u2603"
    assert max(tokens) < len(tokenizer) <= zoo.VOCABULARY
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert config[name] == getattr(tokenizer, name)
    said = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert said == "<s>user: Hi</s>"
    zoo.write_tokenizer(tmp_path / "plain")
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").chat_template is None
