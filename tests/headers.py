"""Checkpoints of real size without content: real headers, and files that are long and empty.

What only reads headers does not see the difference, and the disk holds nothing.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Tensors = Iterable[tuple[str, str, tuple[int, ...]]]
"""Name, dtype as safetensors writes it, and shape."""

_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1}
_SHARD_BYTES = 4_300_000_000

DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
"""The config.json of deepseek-ai/DeepSeek-V3, without what names code."""


def deepseek_v3() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """The tensors of DeepSeek-V3: 61 blocks of which 58 have 256 experts, and one for drafting."""
    hidden, inner, vocabulary = 7168, 2048, 129280

    def linear(name: str, rows: int, columns: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        yield f"{name}.weight", "F8_E4M3", (rows, columns)
        yield f"{name}.weight_scale_inv", "F32", (-(-rows // 128), -(-columns // 128))

    def mlp(name: str, width: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        yield from linear(f"{name}.gate_proj", width, hidden)
        yield from linear(f"{name}.up_proj", width, hidden)
        yield from linear(f"{name}.down_proj", hidden, width)

    yield "model.embed_tokens.weight", "BF16", (vocabulary, hidden)
    for block in range(62):
        start = f"model.layers.{block}"
        if block == 61:
            yield f"{start}.embed_tokens.weight", "BF16", (vocabulary, hidden)
            yield f"{start}.enorm.weight", "BF16", (hidden,)
            yield f"{start}.hnorm.weight", "BF16", (hidden,)
            yield f"{start}.eh_proj.weight", "BF16", (hidden, 2 * hidden)
            yield f"{start}.shared_head.norm.weight", "BF16", (hidden,)
            yield f"{start}.shared_head.head.weight", "BF16", (vocabulary, hidden)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{start}.{norm}.weight", "BF16", (hidden,)
        attention = f"{start}.self_attn"
        yield from linear(f"{attention}.q_a_proj", 1536, hidden)
        yield f"{attention}.q_a_layernorm.weight", "BF16", (1536,)
        yield from linear(f"{attention}.q_b_proj", 24576, 1536)
        yield from linear(f"{attention}.kv_a_proj_with_mqa", 576, hidden)
        yield f"{attention}.kv_a_layernorm.weight", "BF16", (512,)
        yield from linear(f"{attention}.kv_b_proj", 32768, 512)
        yield from linear(f"{attention}.o_proj", hidden, 16384)
        if block < 3:
            yield from mlp(f"{start}.mlp", 18432)
            continue
        yield f"{start}.mlp.gate.weight", "BF16", (256, hidden)
        yield f"{start}.mlp.gate.e_score_correction_bias", "F32", (256,)
        for expert in range(256):
            yield from mlp(f"{start}.mlp.experts.{expert}", inner)
        yield from mlp(f"{start}.mlp.shared_experts", inner)
    yield "model.norm.weight", "BF16", (hidden,)
    yield "lm_head.weight", "BF16", (vocabulary, hidden)


def write(folder: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    """Writes a checkpoint in shards whose tensors have no content.

    Args:
        folder: Where to.
        config: Its ``config.json``.
        tensors: What it holds.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"model": {}}')
    shards: list[dict[str, Any]] = [{}]
    at = total = 0
    for name, dtype, shape in tensors:
        size = _BYTES[dtype]
        for side in shape:
            size *= side
        if at and at + size > _SHARD_BYTES:
            shards.append({})
            at = 0
        shards[-1][name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at, total = at + size, total + size
    weight_map = {}
    for number, header in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):06}.safetensors"
        text = json.dumps(header).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text)
        end = max(entry["data_offsets"][1] for entry in header.values())
        os.truncate(folder / file, 8 + len(text) + end)
        weight_map |= dict.fromkeys(header, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
