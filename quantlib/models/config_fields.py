"""Which fields of a config are known; one that is not may change what the model computes.

A family's fields are those of transformers' class for it, and those that the code of that class
asks for by name. Other programs add to a config what they know of themselves: where that is known
to say nothing of the function, it stands in :data:`HARMLESS`; what vLLM reads and transformers has
in its code, in :data:`SERVED`; other names of a field that has the same value, in :data:`SAME`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from functools import cache
from types import CodeType
from typing import Any

from quantlib.errors import Problem


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GUIDE = "docs/extension_guide.md"

OF_ALL = _words(
    """
    head_dim partial_rotary_factor rope_parameters rope_scaling rope_theta sliding_window_pattern
    """
)
"""What transformers reads of every family, whether its class says so or not."""

SIZES = _words(
    """
    add_full_attention_sink_bias add_swa_attention_sink_bias attn_output_gate hybrid_layer_pattern
    intermediate_size moe_intermediate_size num_experts num_hidden_layers num_local_experts
    swa_head_dim swa_num_attention_heads swa_num_key_value_heads swa_v_head_dim
    """
)
"""What tensors would have other shapes or names with, which is refused for itself."""

SERVED = _words(
    """
    aux_loss_alpha block_auto_adjust_ff_dim block_dim block_ff_dim block_ffn_dim_multiplier
    block_mlp_init_scale block_multiple_of block_norm_eps block_out_init_scale block_use_swiglu
    block_use_xavier_init conv_dim conv_dim_out conv_L_cache conv_use_xavier_init ep_size
    first_k_dense_replace hybrid_override_pattern moe_layer_freq n_group norm_topk_prob
    rotary_dim scoring_func seq_aux time_step_rank topk_group
    topk_method use_pos_enc use_qk_norm use_routing_bias
    """
)
"""Fields of configs on the hub that vLLM reads, or that training read."""

SAME = {
    "attention_chunk_size": "sliding_window",
    "attention_head_dim": "head_dim",
    "experts_per_token": "num_experts_per_tok",
    "initial_context_length": "rope_parameters.original_max_position_embeddings",
    "layernorm_epsilon": "rms_norm_eps",
    "norm_eps": "layer_norm_epsilon",
    "rms_norm_eps": "layer_norm_epsilon",
    "sliding_window_size": "sliding_window",
    "swa_rope_theta": "rope_parameters.sliding_attention.rope_theta",
}
"""Other names of what transformers has: known where it has the same value."""

ALWAYS: Mapping[str, Mapping[str, Any]] = {
    "afmoe": {"route_norm": True, "score_func": "sigmoid"},
    "glm_moe_dsa": {"indexer_rope_interleave": True, "rope_interleave": True},
    "minimax_m2": {"qk_norm_type": "per_layer"},
    "qwen3_5_moe_text": {"output_gate_type": "swish"},
    "qwen3_5_text": {"output_gate_type": "swish"},
}
"""What transformers' code of a family does without asking its config, by model type."""

ONLY_WITH = {"max_window_layers": "use_sliding_window"}
"""Fields that say nothing where another is off."""

HARMLESS = _words(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled
    _name_or_path architectures attn_implementation auto_map cache_implementation
    chunk_size_feed_forward compression_config custom_pipelines dtype eos_token finetuning_task
    id2label is_decoder is_encoder_decoder is_llama_config label2id max_length max_sequence_length
    model_max_length model_type neftune_noise_alpha output_attentions output_hidden_states prefix
    pretraining_tp problem_type quantization_config return_dict sep_token_id task_specific_params
    tokenizer_class tokenizer_model_max_length tokenizer_padding_side torch_dtype
    transformers.js_config transformers_version unsloth_fixed unsloth_version use_bfloat16
    decoder_start_token_id forced_bos_token_id forced_eos_token_id bad_words_ids
    begin_suppress_tokens suppress_tokens do_sample early_stopping length_penalty min_length
    no_repeat_ngram_size encoder_no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_scores remove_invalid_values repetition_penalty return_dict_in_generate temperature top_k
    top_p typical_p diversity_penalty exponential_decay_length_penalty unk_token_id bos_token_id
    eos_token_id pad_token_id
    """
)
"""What says nothing of the function: origin, tokenizer, generation, the tools that wrote it."""

_TOKENS = re.compile(r"(_token_ids?|_token_index|_placeholder)$|^ignore_index$")
_DRAFT = re.compile(r"(^|_)(mtp|nextn)(_|$)")
_DTYPE = re.compile(r"_dtype$")
_TRAINING = re.compile(
    r"(^|_)(loss|balanc(e|ing)|dropout|initializer|checkpointing|grouped_mm)(_|$)"
)
_MODALITY = re.compile(r"(^|_)(audio|image|media|mm|speech|video|vision)(_|$)")
"""What of a wrapper text does not go through; the names of its parts are told otherwise."""

_MOST_SHOWN = 60
_INERT_WORDS = ("", "default", "none")


def field_problems(
    config: Mapping[str, Any], own: Any, where: str = "", whole: Any = None
) -> Iterator[Problem]:
    """The fields that nobody here knows and whose value could change what the model computes.

    Args:
        config: The parsed ``config.json``, or a part of it.
        own: transformers' config of it.
        where: The field that holds the part.
        whole: transformers' config of what the part is of.
    """
    known = {field.name for field in dataclasses.fields(own)} | own.attribute_map.keys()
    known |= type(own)().to_dict().keys() | _asked_for(own.__class__)
    known |= OF_ALL | SIZES | SERVED | HARMLESS
    text = own.get_text_config(decoder=True)
    for field, value in config.items():
        if field in getattr(own, "sub_configs", ()) and isinstance(value, Mapping):
            inner = getattr(own, field, None)
            if "text" in field and dataclasses.is_dataclass(inner):
                yield from field_problems(value, inner, f"{where}{field}.", own)
            continue
        others = [other for other in (whole, text) if other is not None and other is not own]
        if (
            field in known
            or _is_inert(value)
            or _says_nothing(field, config, wrapper=text is not own or whole is not None)
            or _is_said(field, value, own)
            or any(_value(other, field) == value for other in others)
        ):
            continue
        shown = repr(value)
        if len(shown) > _MOST_SHOWN:
            shown = shown[: _MOST_SHOWN - 1] + "…"
        yield Problem(
            f"config.json: {where}{field}",
            f"{shown} is unknown for {own.model_type}, and may change what the model computes",
            f"remove it if it does not, else add an adapter: {_GUIDE}",
        )


@cache
def _asked_for(own: type) -> frozenset[str]:
    """The names in the code of a config's class: what it takes from a config by name."""
    found: set[str] = set()
    for each in own.__mro__:
        if each.__module__.startswith("transformers.models."):
            for member in vars(each).values():
                code = getattr(getattr(member, "fget", member), "__code__", None)
                found.update(() if code is None else _strings(code))
    return frozenset(found)


def _strings(code: CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        for each in constant if isinstance(constant, (tuple, frozenset)) else (constant,):
            if isinstance(each, str):
                yield each
            elif isinstance(each, CodeType):
                yield from _strings(each)


def _says_nothing(field: str, config: Mapping[str, Any], wrapper: bool) -> bool:
    """Whether a field is of what is not walked: tokens, drafts, dtypes, training, modalities."""
    if any(pattern.search(field) for pattern in (_TOKENS, _DRAFT, _DTYPE, _TRAINING)):
        return True
    if field in ONLY_WITH and not config.get(ONLY_WITH[field]):
        return True
    return wrapper and _MODALITY.search(field) is not None


def _is_said(field: str, value: Any, own: Any) -> bool:
    """Whether transformers has what a field says, by another name or in its code."""
    always = ALWAYS.get(own.model_type, {})
    return (field in always and always[field] == value) or (
        field in SAME and _value(own, SAME[field]) == value
    )


def _value(own: Any, path: str) -> Any:
    """What stands at a path of fields; None where nothing does."""
    for field in path.split("."):
        own = own.get(field) if isinstance(own, Mapping) else getattr(own, field, None)
    return own


def _is_inert(value: Any) -> bool:
    """Whether a value asks for nothing: off, empty, a factor of 1, or a list of such factors."""
    if isinstance(value, list):
        return all(item == 1 and item is not True for item in value)
    if isinstance(value, str):
        return value.lower() in _INERT_WORDS
    return value in (None, False, 0, [], {}) or (value == 1 and value is not True)
