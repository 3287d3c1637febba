"""Llama 2, 3 and 4, Mistral, SmolLM2."""

from __future__ import annotations

from quantlib.models.huggingface import BaseHuggingFaceAdapter
from quantlib.models.registry import model_registry


@model_registry.register("llama", "llama4_text", "mistral")
class LlamaAdapter(BaseHuggingFaceAdapter):
    """The family of Llama: nothing differs from what its layout says."""
