"""Which fields of a config are known; one that is not may change what the model computes.

A family's fields are those of transformers' class for it. Other programs add to a config what they
know of themselves: where that is known to say nothing of the function, it stands in
:data:`HARMLESS`; and what vLLM reads and transformers has in its code, in :data:`SERVED`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
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
    "intermediate_size moe_intermediate_size num_experts num_hidden_layers num_local_experts"
)
"""What tensors would have other shapes or names with, which is refused for itself."""

SERVED = _words(
    """
    aux_loss_alpha block_auto_adjust_ff_dim block_dim block_ff_dim block_ffn_dim_multiplier
    block_mlp_init_scale block_multiple_of block_norm_eps block_out_init_scale block_use_swiglu
    block_use_xavier_init conv_dim conv_dim_out conv_L_cache conv_use_xavier_init ep_size
    first_k_dense_replace hybrid_override_pattern moe_layer_freq n_group norm_topk_prob
    num_nextn_predict_layers num_mtp_layers num_mtp_modules mtp_transformer_layers rotary_dim
    scoring_func seq_aux topk_group
    topk_method use_mtp use_pos_enc use_qk_norm use_routing_bias
    """
)
"""Fields of configs on the hub that vLLM reads, or that training read."""

HARMLESS = _words(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled
    _name_or_path architectures attn_implementation auto_map cache_implementation
    chunk_size_feed_forward compression_config custom_pipelines dtype eos_token finetuning_task
    id2label is_decoder is_encoder_decoder is_llama_config label2id max_length max_sequence_length
    model_max_length model_type neftune_noise_alpha output_attentions output_hidden_states prefix
    problem_type quantization_config return_dict sep_token_id task_specific_params tokenizer_class
    tokenizer_model_max_length tokenizer_padding_side torch_dtype transformers.js_config
    transformers_version unsloth_fixed unsloth_version use_bfloat16 decoder_start_token_id
    forced_bos_token_id forced_eos_token_id bad_words_ids begin_suppress_tokens suppress_tokens
    do_sample early_stopping length_penalty min_length no_repeat_ngram_size
    encoder_no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores
    remove_invalid_values repetition_penalty return_dict_in_generate temperature top_k top_p
    typical_p diversity_penalty exponential_decay_length_penalty unk_token_id bos_token_id
    eos_token_id pad_token_id
    """
)
"""What says nothing of the function: origin, tokenizer, generation, the tools that wrote it."""

_MOST_SHOWN = 60
_INERT_WORDS = ("", "default", "none")


def field_problems(config: Mapping[str, Any], own: Any, where: str = "") -> Iterator[Problem]:
    """The fields that nobody here knows and whose value could change what the model computes.

    Args:
        config: The parsed ``config.json``, or a part of it.
        own: transformers' config of it.
        where: The field that holds the part.
    """
    known = {field.name for field in dataclasses.fields(own)} | own.attribute_map.keys()
    known |= type(own)().to_dict().keys() | OF_ALL | SIZES | SERVED | HARMLESS
    for field, value in config.items():
        if field in getattr(own, "sub_configs", ()) and isinstance(value, Mapping):
            inner = getattr(own, field, None)
            if "text" in field and dataclasses.is_dataclass(inner):
                yield from field_problems(value, inner, f"{where}{field}.")
        elif field not in known and not _is_inert(value):
            shown = repr(value)
            if len(shown) > _MOST_SHOWN:
                shown = shown[: _MOST_SHOWN - 1] + "…"
            yield Problem(
                f"config.json: {where}{field}",
                f"{shown} is unknown for {own.model_type}, and may change what the model computes",
                f"remove it if it does not, else add an adapter: {_GUIDE}",
            )


def _is_inert(value: Any) -> bool:
    """Whether a value asks for nothing: off, empty, or a factor of 1."""
    if isinstance(value, str):
        return value.lower() in _INERT_WORDS
    return value in (None, False, 0, [], {}) or (value == 1 and value is not True)
