"""Qwen3-MoE: norms on q and k as in Qwen3; some MLPs may be dense."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from quantlib.errors import Problem
from quantlib.models.mixture import MixtureAdapter
from quantlib.models.registry import model_registry


@model_registry.register("qwen3_moe")
class Qwen3MoeAdapter(MixtureAdapter):
    """Qwen3-MoE's decoders."""

    experts_fields: ClassVar[tuple[str, ...]] = ("num_experts", "num_local_experts")
    intermediate_field: ClassVar[str] = "moe_intermediate_size"

    def _mixture_problems(self, config: Mapping[str, Any]) -> list[Problem]:
        problems = super()._mixture_problems(config)
        if config.get("shared_expert_intermediate_size"):
            problems.append(
                Problem(
                    "config.json: shared_expert_intermediate_size", "shared experts: not supported"
                )
            )
        return problems

    @property
    def normalized(self) -> bool:
        """Whether the weights of a token's experts add up to 1."""
        return bool(self.config.get("norm_topk_prob", False))

    def is_mixture(self, block: int) -> bool:
        """Every ``decoder_sparse_step``-th block, apart from ``mlp_only_layers``."""
        step = self.config.get("decoder_sparse_step", 1)
        dense = self.config.get("mlp_only_layers") or ()
        return block not in dense and (block + 1) % step == 0

    def norm_widths(self) -> dict[str, int]:
        """Channels of a block's norms, by name within the block."""
        return super().norm_widths() | self.head_norm_widths()

    def format_problem(self, format_name: str, exact: Sequence[Collection[str]]) -> str | None:
        """Why vLLM cannot read the family in a format that it reads otherwise; None where it can.

        vLLM does not tell the gptq format that ``mlp.gate_up_proj`` is fused, and so does not find
        it among the quantized linears.
        """
        dense = [
            block
            for block, linears in enumerate(exact)
            if not self.is_mixture(block) and not {"mlp.gate_proj", "mlp.up_proj"} <= set(linears)
        ]
        if format_name != "gptq" or not dense:
            return super().format_problem(format_name, exact)
        return f"vLLM takes gate and up of blocks without experts (block {dense[0]}) for exact"

    def sliding_window(self, block: int) -> int | None:
        """Tokens that a block's attention reaches back, or None for all of them."""
        if not self.config.get("use_sliding_window", False):
            return None
        return super().sliding_window(block)
