"""IBM's dense Granite 3: Llama's layout with multipliers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from quantlib.models.huggingface import BaseHuggingFaceAdapter
from quantlib.models.registry import model_registry
from quantlib.models.settings import BlockSettings

if TYPE_CHECKING:
    from torch import Tensor


@model_registry.register("granite")
class GraniteAdapter(BaseHuggingFaceAdapter):
    """Dense Granite decoders. ``logits_scaling`` concerns the head alone."""

    required_numbers: ClassVar[tuple[str, ...]] = (
        "embedding_multiplier",
        "residual_multiplier",
        "attention_multiplier",
    )
    rejected: ClassVar[tuple[str, ...]] = (
        *BaseHuggingFaceAdapter.rejected,
        "sliding_window",
        "layer_types",
        "layer_rope_theta",
    )
    activations: ClassVar[tuple[str, ...]] = ("silu",)

    def scale_embeddings(self, embedded: Tensor) -> Tensor:
        """Times the config's multiplier."""
        return embedded * self.config["embedding_multiplier"]

    def block_settings(self, block: int) -> BlockSettings:
        """The numbers that a block is computed with."""
        return replace(
            super().block_settings(block),
            score_scale=float(self.config["attention_multiplier"]),
            residual_multiplier=float(self.config["residual_multiplier"]),
        )
