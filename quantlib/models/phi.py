"""Phi-3, 3.5 and 4: one linear for queries, keys and values, and one for gate and up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from quantlib.models.base import LinearGroup, Producer
from quantlib.models.huggingface import BaseHuggingFaceAdapter
from quantlib.models.registry import model_registry

_TYPES = {"su": "longrope"}
"""What early configs called a type of rotary embedding."""


@model_registry.register("phi3")
class PhiAdapter(BaseHuggingFaceAdapter):
    """Phi decoders. Where LongRoPE is used, sequences up to the original length are short ones."""

    rejected: ClassVar[tuple[str, ...]] = (
        *BaseHuggingFaceAdapter.rejected,
        "attention_bias",
        "mlp_bias",
        "layer_types",
    )
    rope_types: ClassVar[tuple[str, ...]] = ("default", "longrope")
    partial_rotary: ClassVar[bool] = True

    def groups(self, block: int) -> tuple[LinearGroup, ...]:
        """The linears of a block, in the order in which their inputs arise."""
        attention_input, attention_output, mlp_input, mlp_output = super().groups(block)
        values = Producer(
            "self_attn.qkv_proj",
            first_row=(self.heads + self.key_value_heads) * self.head_dim,
            head_dim=self.head_dim,
            repeats=self.heads // self.key_value_heads,
        )
        up = Producer("mlp.gate_up_proj", first_row=self.config["intermediate_size"])
        return (
            LinearGroup(attention_input.name, ("self_attn.qkv_proj",), attention_input.producer),
            LinearGroup(attention_output.name, attention_output.linears, values),
            LinearGroup(mlp_input.name, ("mlp.gate_up_proj",), mlp_input.producer),
            LinearGroup(mlp_output.name, mlp_output.linears, up),
        )

    def fused(self, block: int) -> Mapping[str, tuple[str, ...]]:
        """Nothing: the checkpoint's linears are vLLM's."""
        return {}

    def linear_shapes(self, block: int) -> dict[str, tuple[int, int]]:
        """``(out_features, in_features)`` of a block's linears, by name within the block."""
        hidden, intermediate = self.config["hidden_size"], self.config["intermediate_size"]
        queries, keys = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        return {
            "self_attn.qkv_proj": (queries + 2 * keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_up_proj": (2 * intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
        }

    def rope_parameters(self, block: int) -> dict[str, Any]:
        """The parameters of a block's rotary embedding, by transformers' names."""
        parameters = super().rope_parameters(block)
        parameters["rope_type"] = _TYPES.get(parameters["rope_type"], parameters["rope_type"])
        # The config's own field counts, whatever stands beside the factors.
        original = self.config.get("original_max_position_embeddings")
        return parameters | {"original_max_position_embeddings": original}
