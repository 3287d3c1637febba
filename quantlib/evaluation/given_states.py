"""The logits that one of transformers' models makes of hidden states that are there already."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """Logits ``[rows, vocabulary]`` of hidden states ``[rows, hidden_size]``.

    Some families cap or scale what the head gives; the model's own forward does that here.

    Args:
        model: A causal language model, whose head is at hand.
        hidden: Where the model is.
    """
    from transformers.modeling_outputs import MoeModelOutputWithPast

    class Given(MoeModelOutputWithPast):
        # What wrappers hand on.
        image_hidden_states = video_hidden_states = audio_hidden_states = None
        rope_deltas = shared_kv_states = None

    given = Given(last_hidden_state=hidden[None])
    causal, decoder = language_parts(model)
    decoder.forward = lambda **_: given
    try:
        logits: Tensor = causal(use_cache=False).logits[0]
        return logits
    finally:
        del decoder.forward


def language_parts(model: Any) -> tuple[Any, Any]:
    """What gives logits of text, and the part of it that gives hidden states."""
    if model.base_model is not model:
        return model, model.base_model
    # Llama 4's classes say that their base has a name which nothing in them has.
    nested = model.get_decoder()
    return (model, model.model) if nested is model else language_parts(nested)
