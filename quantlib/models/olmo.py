"""Ai2's OLMo-2: norms after the attention and the MLP, none before them."""

from __future__ import annotations

from typing import ClassVar

from quantlib.models.huggingface import BaseHuggingFaceAdapter
from quantlib.models.registry import model_registry
from quantlib.models.settings import Norms


@model_registry.register("olmo2")
class OlmoAdapter(BaseHuggingFaceAdapter):
    """OLMo-2 decoders: queries and keys are normalized over all heads together.

    The linears behind the residual stream take it as it is, so that scales for their input have
    no place to go.
    """

    rejected: ClassVar[tuple[str, ...]] = (
        *BaseHuggingFaceAdapter.rejected,
        "sliding_window",
        "layer_types",
    )
    norms: ClassVar[Norms] = Norms(
        before_attention=None,
        after_attention="post_attention_layernorm",
        before_mlp=None,
        after_mlp="post_feedforward_layernorm",
    )

    def norm_widths(self) -> dict[str, int]:
        """Channels of a block's norms, by name within the block."""
        return super().norm_widths() | {
            "self_attn.q_norm": self.heads * self.head_dim,
            "self_attn.k_norm": self.key_value_heads * self.head_dim,
        }
