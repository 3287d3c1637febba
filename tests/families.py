"""The configs of the tiny models: one entry of a table for each family (:mod:`zoo`)."""

from __future__ import annotations

from typing import Any

VOCABULARY = 512

_BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_HEADS = {"head_dim": 64}
_SLIDING = {"sliding_window": 32}
_TWO = ["sliding_attention", "full_attention"]
_ALTERNATE = {**_SLIDING, "num_hidden_layers": 4, "layer_types": _TWO * 2}
_EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}
_WIDE_EXPERTS = {**_EXPERTS, "intermediate_size": 256}
_MIXTURE = {**_EXPERTS, "num_experts": 8, "moe_intermediate_size": 256}
_ROUTED = {**_MIXTURE, "n_routed_experts": 8, "first_k_dense_replace": 1}
_SHARED_EXPERT = {**_MIXTURE, "shared_expert_intermediate_size": 256}
_DELTA = {
    "num_hidden_layers": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_LATENT = {
    "q_lora_rank": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "num_key_value_heads": 4,
}
_LATENT_GROUPS = {**_ROUTED, **_LATENT, "num_hidden_layers": 3, "n_group": 2, "topk_group": 1}
_INDEXER = {"index_topk": 32, "index_head_dim": 64, "index_n_heads": 2}
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 64,
    "mamba_d_state": 32,
    "mamba_chunk_size": 32,
}
_HYBRID = {
    **_MAMBA,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_NEMOTRON = {
    **_HEADS,
    "ssm_state_size": 32,
    "mamba_num_heads": 8,
    "mamba_head_dim": 64,
    "n_groups": 2,
    "chunk_size": 32,
}
_CONVOLUTIONS = {
    "num_hidden_layers": 4,
    "layer_types": ["conv", "conv", "full_attention", "conv"],
}
_GEMMA4 = {
    **_HEADS,
    **_ALTERNATE,
    "global_head_dim": 64,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": VOCABULARY,
}
_PER_LAYER_INPUT = {
    "num_hidden_layers": 6,
    "layer_types": _TWO * 3,
    "hidden_size_per_layer_input": 32,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 2,
}
_ERNIE_MIXTURE = {
    "num_hidden_layers": 3,
    "moe_intermediate_size": 256,
    "moe_k": 2,
    "moe_num_experts": 8,
    "moe_num_shared_experts": 1,
    "moe_layer_start_index": 1,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_LAYOUT = {"mrope_section": [3, 3, 2], "mrope_interleaved": True, "partial_rotary_factor": 0.25}
_MROPE = {"rope_type": "default", "rope_theta": 10000000, **_LAYOUT}
_WIDE_MROPE = {
    "rope_type": "default",
    "rope_theta": 5000000,
    "mrope_section": [12, 10, 10],
    "mrope_interleaved": True,
}
_TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    **_TOWER,
    "image_size": 56,
    "patch_size": 14,
    "vision_use_head": False,
}
_PIXTRAL = {"model_type": "pixtral", **_TOWER, "image_size": 56, "patch_size": 14, "head_dim": 32}
_GEMMA4_TOWER = {
    "model_type": "gemma4_vision",
    **_TOWER,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "patch_size": 16,
    "position_embedding_size": 64,
}
_QWEN_TOWER = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "patch_size": 14,
    "out_hidden_size": 256,
    "num_position_embeddings": 16,
}
_QWEN_IMAGES = {
    "image_token_id": 500,
    "video_token_id": 501,
    "vision_start_token_id": 502,
    "vision_end_token_id": 503,
}
_GEMMA4_IMAGES = {
    "image_token_id": 500,
    "video_token_id": 501,
    "audio_token_id": 502,
    "boi_token_id": 503,
    "eoi_token_id": 504,
    "boa_token_id": 505,
    "eoa_token_index": 506,
}
_GEMMA3_IMAGES = {
    "image_token_index": 500,
    "boi_token_index": 503,
    "eoi_token_index": 504,
    "mm_tokens_per_image": 4,
}
_MISTRAL3_IMAGES = {
    "image_token_index": 500,
    "spatial_merge_size": 2,
    "vision_feature_layer": -1,
    "tie_word_embeddings": False,
}


def _text(model_type: str, *parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The config of a model of text: what all have, parts that some share, and what is its own."""
    config = dict(_BASE)
    for part in (*parts, fields):
        config.update(part)
    return {"model_type": model_type, **config}


def _wrapper(
    model_type: str, images: dict[str, Any], tower: dict[str, Any], text: dict[str, Any]
) -> dict[str, Any]:
    """The config of a model of text and images."""
    tower = {"model_type": f"{model_type}_vision"} | tower
    return {"model_type": model_type, **images, "text_config": text, "vision_config": tower}


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _text("llama"),
    "mistral": _text("mistral", sliding_window=None),
    "qwen2": _text("qwen2"),
    "qwen3": _text("qwen3", _HEADS),
    "gemma2": _text("gemma2", _HEADS, _ALTERNATE, query_pre_attn_scalar=64),
    "gemma3_text": _text("gemma3_text", _HEADS, _ALTERNATE, query_pre_attn_scalar=64),
    "granite": _text("granite", embedding_multiplier=3.0, residual_multiplier=0.5),
    "olmo2": _text("olmo2"),
    "phi3": _text("phi3"),
    "mixtral": _text("mixtral", _HEADS, _WIDE_EXPERTS),
    "qwen3_moe": _text("qwen3_moe", _HEADS, _MIXTURE, num_hidden_layers=3, mlp_only_layers=[0]),
    "qwen3_next": _text("qwen3_next", _HEADS, _DELTA, _SHARED_EXPERT),
    "qwen3_5": _text("qwen3_5_text", _HEADS, _DELTA),
    "qwen3_5_moe": _text("qwen3_5_moe_text", _HEADS, _DELTA, _SHARED_EXPERT),
    "gemma3n": _text(
        "gemma3n_text", _HEADS, _SLIDING, _PER_LAYER_INPUT, laurel_rank=16, altup_num_inputs=4
    ),
    "gemma4_dense": _text("gemma4_text", _GEMMA4),
    "gemma4_e2b": _text("gemma4_text", _GEMMA4, _PER_LAYER_INPUT, use_double_wide_mlp=True),
    "gemma4_moe": _text(
        "gemma4_text",
        _GEMMA4,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        enable_moe_block=True,
        num_experts=8,
        top_k_experts=2,
        moe_intermediate_size=256,
    ),
    "glm4_moe": _text("glm4_moe", _HEADS, _ROUTED, num_hidden_layers=3, use_qk_norm=True),
    "glm_moe_dsa": _text(
        "glm_moe_dsa",
        _ROUTED,
        _LATENT,
        _INDEXER,
        num_hidden_layers=4,
        indexer_types=["full", "full", "shared", "full"],
    ),
    "deepseek_v3": _text("deepseek_v3", _LATENT_GROUPS),
    "deepseek_v32": _text("deepseek_v32", _LATENT_GROUPS, _INDEXER),
    "gpt_oss": _text(
        "gpt_oss", _HEADS, _SLIDING, _WIDE_EXPERTS, num_hidden_layers=4, rope_parameters=_YARN
    ),
    "ministral3": _text("ministral3", _HEADS),
    "llama4_text": _text(
        "llama4_text",
        _HEADS,
        _WIDE_EXPERTS,
        num_experts_per_tok=1,
        num_hidden_layers=4,
        interleave_moe_layer_step=2,
        intermediate_size_mlp=512,
        attention_chunk_size=128,
    ),
    "olmo3": _text("olmo3", _SLIDING, num_hidden_layers=4),
    "smollm3": _text("smollm3", num_hidden_layers=4),
    "seed_oss": _text("seed_oss", _HEADS, attention_dropout=0.0, residual_dropout=0.0),
    "granitemoehybrid": _text(
        "granitemoehybrid",
        _HYBRID,
        _WIDE_EXPERTS,
        shared_intermediate_size=256,
        position_embedding_type="rope",
    ),
    "granitemoehybrid_dense": _text(
        "granitemoehybrid",
        _HYBRID,
        num_local_experts=0,
        num_experts_per_tok=0,
        shared_intermediate_size=512,
        position_embedding_type=None,
    ),
    "nemotron_h": _text(
        "nemotron_h",
        _NEMOTRON,
        _ROUTED,
        layers_block_type=["linear_attention", "moe", "full_attention", "mlp"],
        moe_shared_expert_intermediate_size=256,
    ),
    "nemotron_h_dense": _text(
        "nemotron_h",
        _NEMOTRON,
        layers_block_type=["linear_attention", "mlp", "full_attention", "mlp"],
    ),
    "lfm2": _text("lfm2", _CONVOLUTIONS, block_auto_adjust_ff_dim=False),
    "lfm2_moe": _text("lfm2_moe", _MIXTURE, _CONVOLUTIONS, num_dense_layers=1),
    "ernie4_5": _text("ernie4_5", _HEADS),
    "ernie4_5_moe": _text("ernie4_5_moe", _ERNIE_MIXTURE),
    "cohere2": _text("cohere2", _SLIDING, num_hidden_layers=4),
    "exaone4": _text("exaone4", _HEADS, _SLIDING, num_hidden_layers=4),
    "minimax_m2": _text("minimax_m2", _HEADS, _WIDE_EXPERTS, rotary_dim=32),
    "apertus": _text("apertus"),
    "hunyuan_v1_dense": _text("hunyuan_v1_dense", _HEADS),
    "hunyuan_v1_moe": _text("hunyuan_v1_moe", _HEADS, _MIXTURE, moe_topk=2, num_shared_expert=1),
    "falcon_h1": _text("falcon_h1", _HEADS, _MAMBA, mamba_d_ssm=512),
    "kimi_linear": _text(
        "kimi_linear",
        _LATENT,
        _EXPERTS,
        q_lora_rank=None,
        moe_intermediate_size=256,
        num_hidden_layers=4,
        layer_types=["linear_attention"] * 3 + ["full_attention"],
        mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
        linear_head_dim=64,
        linear_num_heads=4,
    ),
    "qwen3_vl": _wrapper(
        "qwen3_vl",
        _QWEN_IMAGES,
        {**_QWEN_TOWER, "model_type": "qwen3_vl", "deepstack_visual_indexes": [0]},
        _text("qwen3_vl_text", _HEADS, rope_parameters=_WIDE_MROPE),
    ),
    "qwen3_5_images": _wrapper(
        "qwen3_5",
        _QWEN_IMAGES,
        _QWEN_TOWER,
        _text("qwen3_5_text", _HEADS, _DELTA, rope_parameters=_MROPE),
    ),
    "qwen3_5_moe_images": _wrapper(
        "qwen3_5_moe",
        _QWEN_IMAGES,
        _QWEN_TOWER,
        _text("qwen3_5_moe_text", _HEADS, _DELTA, _SHARED_EXPERT, rope_parameters=_MROPE),
    ),
    "gemma3_images": _wrapper(
        "gemma3",
        _GEMMA3_IMAGES,
        _SIGLIP,
        _text("gemma3_text", _HEADS, _ALTERNATE, query_pre_attn_scalar=64),
    ),
    "gemma4_images": _wrapper(
        "gemma4", _GEMMA4_IMAGES, _GEMMA4_TOWER, _text("gemma4_text", _GEMMA4, _PER_LAYER_INPUT)
    ),
    "mistral3_images": _wrapper(
        "mistral3",
        _MISTRAL3_IMAGES,
        _PIXTRAL,
        _text("ministral3", _HEADS, num_hidden_layers=3),
    ),
}
"""The config of each; a name ends in ``_images`` where the family has models of text alone too."""

_NO_AUXILIARY_LOSS = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
_LFM = {"conv_dim": 256, "conv_dim_out": 256, "conv_L_cache": 3}

HUB_FIELDS: dict[str, dict[str, Any]] = {
    "deepseek_v3": _NO_AUXILIARY_LOSS,
    "deepseek_v32": _NO_AUXILIARY_LOSS,
    "glm_moe_dsa": _NO_AUXILIARY_LOSS,
    "lfm2": {**_LFM, "block_dim": 256, "block_ff_dim": 512, "conv_use_xavier_init": True},
    "lfm2_moe": _LFM,
    "nemotron_h": {"num_hidden_layers": 4, "hybrid_override_pattern": "ME*-"},
    "nemotron_h_dense": {"num_hidden_layers": 4, "hybrid_override_pattern": "M-*-"},
    "minimax_m2": {"scoring_func": "sigmoid", "use_routing_bias": True},
}
"""Fields of the hub's ``config.json`` that transformers does not write and vLLM reads."""

STACKED = {"qwen3_5_moe", "qwen3_5_moe_images"}
"""Families whose experts the hub keeps in one tensor, and that transformers writes one by one."""
