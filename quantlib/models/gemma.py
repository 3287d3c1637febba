"""Gemma 2 and the text models of Gemma 3: four norms in a block, stored as offsets from one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from quantlib.errors import Problem
from quantlib.models.huggingface import BaseHuggingFaceAdapter
from quantlib.models.registry import model_registry
from quantlib.models.settings import BlockSettings, Norms

if TYPE_CHECKING:
    from torch import Tensor


@model_registry.register("gemma2")
class GemmaAdapter(BaseHuggingFaceAdapter):
    """Gemma 2: every other block reaches back over a window only, and scores are capped."""

    required: ClassVar[tuple[str, ...]] = (*BaseHuggingFaceAdapter.required, "head_dim")
    required_numbers: ClassVar[tuple[str, ...]] = ("query_pre_attn_scalar",)
    activation_field: ClassVar[str] = "hidden_activation"
    activations: ClassVar[tuple[str, ...]] = ("gelu_pytorch_tanh",)
    tied_by_default: ClassVar[bool] = True
    norms: ClassVar[Norms] = Norms(
        before_attention="input_layernorm",
        after_attention="post_attention_layernorm",
        before_mlp="pre_feedforward_layernorm",
        after_mlp="post_feedforward_layernorm",
        offset=1.0,
    )

    @property
    def layer_types(self) -> Sequence[str]:
        """Full or sliding attention, of each block."""
        return self.config.get("layer_types") or self._every_full(2)

    def _every_full(self, period: int) -> list[str]:
        """Sliding attention, but for the last of each ``period`` blocks."""
        return [
            "sliding_attention" if block % period else "full_attention"
            for block in range(1, self.blocks + 1)
        ]

    def scale_embeddings(self, embedded: Tensor) -> Tensor:
        """Times the root of their width, rounded to their dtype as transformers rounds it."""
        import torch

        width = self.config["hidden_size"]
        return embedded * torch.tensor(math.sqrt(width), dtype=embedded.dtype)

    def block_settings(self, block: int) -> BlockSettings:
        """The numbers that a block is computed with."""
        return replace(
            super().block_settings(block),
            score_scale=self.config["query_pre_attn_scalar"] ** -0.5,
            score_softcap=self.config.get("attn_logit_softcapping"),
        )


_THETA = {"full_attention": 1e6, "sliding_attention": 1e4}
"""What a config of Gemma 3 that states no rope_theta stands for."""


@model_registry.register("gemma3_text")
class Gemma3Adapter(GemmaAdapter):
    """Gemma 3 for text: heads are normalized, and a window has a rotary embedding of its own."""

    rejected: ClassVar[tuple[str, ...]] = (*GemmaAdapter.rejected, "attn_logit_softcapping")

    @property
    def layer_types(self) -> Sequence[str]:
        """Full or sliding attention, of each block."""
        period = self.config.get("sliding_window_pattern") or 6
        return self.config.get("layer_types") or self._every_full(period)

    def norm_widths(self) -> dict[str, int]:
        """Channels of a block's norms, by name within the block."""
        return super().norm_widths() | self.head_norm_widths()

    def rope_parameters(self, block: int) -> dict[str, Any]:
        """The parameters of a block's rotary embedding, by transformers' names.

        Transformers 5 states them by the type of the block; earlier releases state those of the
        full attention, and the base of the sliding one.
        """
        kind = self.layer_types[block]
        stated = self.config.get("rope_parameters")
        if stated:
            parameters = dict(stated.get(kind) or {})
        elif kind == "full_attention":
            parameters = dict(self.config.get("rope_scaling") or {})
            parameters.setdefault("rope_theta", self.config.get("rope_theta"))
        else:
            parameters = {"rope_theta": self.config.get("rope_local_base_freq")}
        if parameters.get("rope_theta") is None:
            parameters["rope_theta"] = _THETA[kind]
        parameters["rope_type"] = parameters.get("rope_type", parameters.get("type", "default"))
        return parameters

    def _config_problems(self) -> list[Problem]:
        stated = self.config.get("rope_parameters") or {}
        if all(isinstance(stated.get(kind), Mapping) for kind in stated):
            return super()._config_problems()
        return [
            Problem("config.json: rope_parameters", f"has to be given by type: {', '.join(_THETA)}")
        ]
