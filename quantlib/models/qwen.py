"""Qwen2 and 2.5 (biases on q, k and v) and dense Qwen3 (norms on q and k)."""

from __future__ import annotations

from quantlib.models.huggingface import BaseHuggingFaceAdapter
from quantlib.models.registry import model_registry


@model_registry.register("qwen2", "qwen3")
class QwenAdapter(BaseHuggingFaceAdapter):
    """Dense Qwen decoders. Biases and head norms stay exact."""

    def sliding_window(self, block: int) -> int | None:
        """Tokens that a block's attention reaches back, or None for all of them."""
        if not self.config.get("use_sliding_window", False):
            return None
        if self.config.get("layer_types") is None and block < self.config.get(
            "max_window_layers", self.blocks
        ):
            return None
        return super().sliding_window(block)
