"""Which fields of a config are known; one that is not may change what the model computes.

The fields of each family are those of transformers' class for it; a test compares them. Other
programs add to a config what they know of themselves: where that is known to say nothing of the
function, it stands in :data:`HARMLESS`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from quantlib.errors import Problem


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GUIDE = "docs/extension_guide.md"

OF_ALL = _words(
    """
    attention_bias attention_dropout bos_token_id eos_token_id head_dim hidden_act hidden_size
    initializer_range intermediate_size layer_types max_position_embeddings mlp_bias
    num_attention_heads num_hidden_layers num_key_value_heads pad_token_id rms_norm_eps
    rope_parameters rope_scaling rope_theta sliding_window tie_word_embeddings use_cache vocab_size
    """
)
"""What the adapters read for every family, and what concerns training, generation or caching."""

_MIXTURE = """
    num_experts num_experts_per_tok num_local_experts output_router_logits router_aux_loss_coef
"""
_GEMMA = """
    attn_logit_softcapping final_logit_softcapping hidden_activation query_pre_attn_scalar
    use_bidirectional_attention
"""
_QWEN = "max_window_layers use_sliding_window use_mrope"

OF_FAMILY: Mapping[str, frozenset[str]] = {
    model_type: _words(fields)
    for model_type, fields in {
        "llama": "pretraining_tp",
        "mistral": "",
        "qwen2": _QWEN,
        "qwen3": _QWEN,
        "gemma2": _GEMMA,
        "gemma3_text": _GEMMA
        + " sliding_window_pattern _sliding_window_pattern rope_local_base_freq",
        "granite": "attention_multiplier embedding_multiplier logits_scaling residual_multiplier",
        "olmo2": "",
        "phi3": "embd_pdrop original_max_position_embeddings partial_rotary_factor resid_pdrop",
        "mixtral": _MIXTURE + " router_jitter_noise",
        "qwen3_moe": _MIXTURE
        + _QWEN
        + " decoder_sparse_step mlp_only_layers moe_intermediate_size norm_topk_prob",
    }.items()
}
"""What a family has besides."""

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
    typical_p diversity_penalty exponential_decay_length_penalty unk_token_id
    """
)
"""What says nothing of the function: origin, tokenizer, generation, the tools that wrote it."""

_MOST_SHOWN = 60
_INERT_WORDS = ("", "default", "none")


def field_problems(config: Mapping[str, Any], known: Collection[str]) -> Iterator[Problem]:
    """The fields that nobody here knows and whose value could change what the model computes.

    Args:
        config: The parsed ``config.json``.
        known: Further fields that its adapter knows.
    """
    model_type = str(config.get("model_type"))
    if model_type not in OF_FAMILY:
        return
    expected = OF_ALL | OF_FAMILY[model_type] | HARMLESS | set(known)
    for field, value in config.items():
        if field not in expected and not _is_inert(value):
            shown = repr(value)
            if len(shown) > _MOST_SHOWN:
                shown = shown[: _MOST_SHOWN - 1] + "…"
            yield Problem(
                f"config.json: {field}",
                f"{shown} is unknown for {model_type}, and may change what the model computes",
                f"remove it if it does not, else add an adapter: {_GUIDE}",
            )


def _is_inert(value: Any) -> bool:
    """Whether a value asks for nothing: off, empty, or a factor of 1."""
    if isinstance(value, str):
        return value.lower() in _INERT_WORDS
    return value in (None, False, 0, [], {}) or (value == 1 and value is not True)
