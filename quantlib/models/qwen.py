"""Qwen2 and 2.5 (biases on q, k and v) and dense Qwen3 (norms on q and k)."""

from __future__ import annotations

from typing import ClassVar

from quantlib.models.huggingface import BaseHuggingFaceAdapter
from quantlib.models.registry import model_registry


@model_registry.register("qwen2")
class QwenAdapter(BaseHuggingFaceAdapter):
    """Dense Qwen decoders. Biases stay exact."""

    always_biased: ClassVar[tuple[str, ...]] = (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
    )
    rejected: ClassVar[tuple[str, ...]] = (
        *BaseHuggingFaceAdapter.rejected,
        "use_mrope",
        "dual_chunk_attention_config",
    )

    def sliding_window(self, block: int) -> int | None:
        """Tokens that a block's attention reaches back, or None for all of them."""
        if not self.config.get("use_sliding_window", False):
            return None
        if self.config.get("layer_types") is None and block < self.config.get(
            "max_window_layers", self.blocks
        ):
            return None
        return super().sliding_window(block)


@model_registry.register("qwen3")
class Qwen3Adapter(QwenAdapter):
    """Dense Qwen3: the heads of queries and keys are normalized. Those norms stay exact."""

    always_biased: ClassVar[tuple[str, ...]] = ()

    def norm_widths(self) -> dict[str, int]:
        """Channels of a block's norms, by name within the block."""
        return super().norm_widths() | self.head_norm_widths()
