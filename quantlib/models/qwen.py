"""Qwen2 to Qwen3.6."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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

    def format_problem(self, format_name: str, exact: Sequence[Collection[str]]) -> str | None:
        """Why vLLM cannot read the family in a format that it reads otherwise; None where it can.

        vLLM does not tell the gptq format that ``mlp.gate_up_proj`` of a block without experts is
        fused, where other blocks have some, and so does not find it among the quantized linears.
        """
        mixtures = any(kind.experts for kind in self.layout.kinds)
        if format_name == "gptq" and mixtures:
            for block, linears in enumerate(exact):
                dense = {"mlp.gate_proj", "mlp.up_proj"} & set(self.linears(block))
                if dense and not dense <= set(linears):
                    where = f"blocks without experts (block {block})"
                    return f"vLLM takes gate and up of {where} for exact"
        return super().format_problem(format_name, exact)
