"""Llama 2 and 3, Mistral, SmolLM2: no biases that matter, no norms within the attention."""

from __future__ import annotations

from quantlib.models.huggingface import BaseHuggingFaceAdapter
from quantlib.models.registry import model_registry


@model_registry.register("llama", "mistral")
class LlamaAdapter(BaseHuggingFaceAdapter):
    """Llama-family decoders, Mistral's sliding window included."""
