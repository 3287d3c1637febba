"""DeepSeek V4."""

from __future__ import annotations

from quantlib.models.huggingface import BaseHuggingFaceAdapter
from quantlib.models.registry import model_registry


@model_registry.register("deepseek_v4")
class DeepseekV4Adapter(BaseHuggingFaceAdapter):
    """The family of DeepSeek V4.

    Its norms stay in float32, and what they give goes into linears: transformers' forward works in
    no other dtype.
    """

    in_float32 = True
