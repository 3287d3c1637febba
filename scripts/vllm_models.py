"""What scripts/vllm_table.py looks at: tiny models of as many architectures as can be made.

The tests' own (tests/families.py), and every other family of transformers whose config becomes
small when fields of some names do. A family that is not small then, or is of another kind, raises
an error: what vLLM makes of it is not known.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from families import FAMILIES
from zoo import make, name_towers_as_on_hub

_MOST_PARAMETERS = 50_000_000

_SMALL = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 512),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embed_dim", "out_hidden_size"), 256),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size"), 512),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 256),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 256),
    **dict.fromkeys(("head_dim", "global_head_dim", "qk_rope_head_dim", "v_head_dim"), 64),
    **dict.fromkeys(("qk_nope_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 64),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "index_head_dim"), 64),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "hidden_size_per_layer_input"), 32),
    **dict.fromkeys(("sliding_window", "index_topk"), 32),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "embed_scale"), 1),
    **dict.fromkeys(("num_key_value_heads", "n_groups", "index_n_heads"), 2),
    **dict.fromkeys(("num_channels", "in_channels"), 3),
    "num_nextn_predict_layers": 0,
    "q_lora_rank": 128,
    "kv_lora_rank": 512,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What fields become, where a config has them; widths are those that vLLM's kernels take."""

_SECTIONS = {
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text"), (8, 12, 12)),
    **dict.fromkeys(("paddleocr_vl_text", "hunyuan_vl_text"), (8, 12, 12)),
    "glm4v_moe_text": (4, 6, 6),
}
"""How the angles of such heads are divided among the axes of images, by model type."""

_OWN: dict[str, dict[str, Any]] = {
    "dots1": {"n_shared_experts": 1},
    "glm5_next_text": {"qk_rope_head_dim": 0, "linear_num_heads": 2, "linear_head_dim": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "longcat_flash": {"num_layers": 2, "expert_ffn_hidden_size": 128, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 64, "n_groups": 2},
    "whisper": {
        **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 512),
    },
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
"""What else is small of a model type, or has to agree with what is."""

_HUB_FIELDS: dict[str, dict[str, Any]] = {
    "afmoe": {
        "score_func": "sigmoid",
        "route_norm": True,
        "route_scale": 1.0,
        "n_group": 1,
        "topk_group": 1,
    },
    "glm4_moe_lite": {"first_k_dense_replace": 1},
    "qwen3_vl_moe": {"text_config": {"norm_topk_prob": True}},
    "glm4v_moe": {"text_config": {"head_dim": 64, "use_qk_norm": False}},
}
"""Fields of the hub's ``config.json`` that transformers does not write and vLLM reads."""


def model_names() -> list[str]:
    """Names that :func:`write` takes: those of the tests' families, and types of other models."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto as auto

    known = {config["model_type"] for config in FAMILIES.values()}
    types = [
        *auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
        *auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    ]
    others = {name for name in types if name in CONFIG_MAPPING} - known - set(FAMILIES)
    return [*FAMILIES, *sorted(others)]


def write(name: str, folder: Path) -> Path:
    """Writes a tiny checkpoint.

    Raises:
        Exception: There is none of that type.
    """
    if name in FAMILIES:
        return make(name, folder)
    import torch
    from transformers import (
        CONFIG_MAPPING,
        AutoModelForCausalLM,
        AutoModelForMultimodalLM,
        AutoModelForSpeechSeq2Seq,
    )

    config = _small(CONFIG_MAPPING[name])
    auto = next(
        each
        for each in (AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq, AutoModelForCausalLM)
        if type(config) in each._model_mapping
    )
    if getattr(config, "is_encoder_decoder", False) and auto is not AutoModelForSpeechSeq2Seq:
        raise NotImplementedError("an encoder and a decoder of text")
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    with torch.device("meta"):
        count = sum(each.numel() for each in auto.from_config(config).parameters())
    if count > _MOST_PARAMETERS:
        raise NotImplementedError(f"{count / 1e6:.0f} million parameters are left")
    config.dtype = torch.bfloat16
    auto.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    name_towers_as_on_hub(folder)
    _name_language_model_as_on_hub(folder)
    path = folder / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    for field, value in _HUB_FIELDS.get(name, {}).items():
        written[field] = written[field] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(written), encoding="utf-8")
    return folder


def _name_language_model_as_on_hub(folder: Path) -> None:
    """Gives that of wrappers of sound the hub's name, from which transformers makes another."""
    from safetensors.torch import load_file, save_file

    path, written = folder / "model.safetensors", "language_model.model.model."
    tensors = load_file(path)
    if any(name.startswith(written) for name in tensors):
        named = {
            name.replace(written, "language_model.model.", 1): tensor
            for name, tensor in tensors.items()
        }
        save_file(named, path, {"format": "pt"})


def untie(folder: Path) -> None:
    """Gives a checkpoint whose head is the embedding a head of its own.

    Raises:
        InvalidInputError: It is no model that can be opened.
    """
    from safetensors.torch import load_file, save_file

    from quantlib.checkpoint.source import FolderSource
    from quantlib.models import open_model
    from quantlib.models.servable import untied

    _, adapter = open_model(FolderSource(folder))
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    head = tensors[f"{adapter.embedding}.weight"].clone()
    save_file(tensors | {f"{adapter.head}.weight": head}, path, {"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(untied(config)), encoding="utf-8")


def _small(config_class: Any) -> Any:
    return config_class(**_small_fields(config_class))


def _small_fields(config_class: Any) -> dict[str, Any]:
    """Arguments that make a config small, and those within it."""
    fields: set[str] = set()
    for base in config_class.__mro__:
        fields |= set(getattr(base, "__annotations__", {}))
    fields |= set(config_class.attribute_map)
    found = {name: value for name, value in _SMALL.items() if name in fields}
    if {"kv_lora_rank", "num_key_value_heads"} <= found.keys():  # latent attention has one for each
        found["num_key_value_heads"] = found["num_attention_heads"]
    if (section := _SECTIONS.get(config_class.model_type)) is not None:
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section)}
        found["rope_parameters"] = rope
    found |= _OWN.get(config_class.model_type, {})
    if config_class.sub_configs:
        default = config_class()
        for name in config_class.sub_configs:
            if (within := getattr(default, name, None)) is not None:
                kind = {"model_type": within.model_type}
                found[name] = kind | _small_fields(type(within))
    return found
