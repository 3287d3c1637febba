"""Qwen2 to Qwen3.6."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from quantlib.models.huggingface import BaseHuggingFaceAdapter
from quantlib.models.registry import model_registry


@model_registry.register(
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_5_text",
    "qwen3_5_moe_text",
)
class QwenAdapter(BaseHuggingFaceAdapter):
    """The family of Qwen: the gates and decays of its gated delta nets stay exact."""

    exact: ClassVar[Mapping[str, str]] = {
        **BaseHuggingFaceAdapter.exact,
        "linear_attn.in_proj_a": "decay of a gated delta net, one number per head",
        "linear_attn.in_proj_b": "gate of a gated delta net, one number per head",
        "linear_attn.in_proj_ba": "gate and decay of a gated delta net, one number per head",
        "mlp.shared_expert_gate": "weighs the shared expert: one number",
    }
