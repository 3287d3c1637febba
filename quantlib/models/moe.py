"""A decoder block whose MLP is a mixture of experts.

The arithmetic is that of transformers' ``modeling_mixtral.py`` and ``modeling_qwen3_moe.py``; the
tests compare with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from quantlib.models.base import LinearGroup
from quantlib.models.decoder import DecoderBlock, Walk
from quantlib.models.mixture import Routing


@dataclass(kw_only=True)
class MixtureBlock(DecoderBlock):
    """One block with its weights, those of all experts included.

    Attributes:
        groups: Its linears by shared input: attention input, attention output, then input and
            output of each expert.
        routing: How tokens come to experts.
    """

    routing: Routing

    @classmethod
    def of(cls, block: DecoderBlock, routing: Routing) -> MixtureBlock:
        """The block with a mixture in place of its MLP."""
        return cls(
            **{field.name: getattr(block, field.name) for field in fields(block)}, routing=routing
        )

    def _walk_mlp(self, x: Tensor) -> Walk:
        tokens = x.flatten(0, -2)
        weights, chosen = self._route(tokens)
        mixed = torch.zeros_like(tokens)
        for number, (expert_input, expert_output) in enumerate(self._experts()):
            rows, places = torch.where(chosen == number)
            routed = tokens[rows]
            if (yield expert_input, routed):
                yield expert_input, tokens
            inner = self._gated(expert_input, routed)
            if (yield expert_output, inner):
                yield expert_output, self._gated(expert_input, tokens)
            (down,) = expert_output.linears
            weighted = self._linear(down, inner) * weights[rows, places, None]
            mixed.index_add_(0, rows, weighted.to(mixed.dtype))
        return mixed.view(x.shape)

    def _experts(self) -> Iterator[tuple[LinearGroup, LinearGroup]]:
        _, _, *groups = self.groups
        return zip(groups[::2], groups[1::2], strict=True)

    def _route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Weights, float32, and indices of each token's experts, ``[tokens, chosen]``."""
        scores = self._linear(self.routing.router, tokens).float().softmax(-1)
        weights, chosen = scores.topk(self.routing.chosen, -1)
        if self.routing.normalized:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, chosen
