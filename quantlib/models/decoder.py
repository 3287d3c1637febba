"""One decoder block, computed in pieces: up to the input of each group of linears.

Calibration needs the inputs of a block's linears one group after the other, each computed with
the groups before it quantized already. A block is therefore walked: the walk stops wherever linears
take their input, and no linear is computed twice. The arithmetic is that of transformers'
``modeling_llama.py`` and ``modeling_qwen3.py``; the tests compare with them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from quantlib.models.attention import causal_attention
from quantlib.models.base import LinearGroup
from quantlib.models.rotary import Rotary, rotate

Walk = Generator[tuple[LinearGroup, Tensor], bool | None, Tensor]
"""A block being computed: yields each group with its input, ``[..., in_features]``, before its
linears are used, and returns the block's output. A walk that stands at a group of an expert and is
sent True yields the group again, with what its input would be if all tokens came to the expert."""


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


@dataclass
class DecoderBlock:
    """One block with its weights.

    Attributes:
        index: Which block it is.
        groups: Its linears by shared input: attention input, attention output, MLP input, MLP
            output.
        tensors: Its tensors by name within the block.
        dtype: The dtype of its matrix products, and of what its linears take in and give.
        rotary: The rotary embedding.
        heads: Query heads.
        key_value_heads: Key and value heads.
        head_dim: Channels of a head.
        norm_eps: Added to the mean square within the norms.
        activation: Name of the MLP's activation.
        sliding_window: Tokens that the attention reaches back, or None.
        norm_offset: What is added to the stored weight of a norm.
    """

    index: int
    groups: tuple[LinearGroup, ...]
    tensors: dict[str, Tensor]
    dtype: torch.dtype
    rotary: Rotary
    heads: int
    key_value_heads: int
    head_dim: int
    norm_eps: float
    activation: str
    sliding_window: int | None
    norm_offset: float = 0.0

    def walk(self, hidden: Tensor) -> Walk:
        """Computes the block, and stops at the input of each group.

        Linears may be changed while the walk stands at their group.

        Args:
            hidden: The residual stream, ``[batch, sequence, hidden_size]``, float32 or in the dtype
                of the products.

        Returns:
            The generator; what it returns is the block's output, of the same shape.
        """
        attention_input, attention_output, *_ = self.groups
        x = self._norm("input_layernorm", hidden)
        yield attention_input, x
        x = self._attention(x)
        yield attention_output, x
        hidden = hidden + self._linear("self_attn.o_proj", x)
        x = self._norm("post_attention_layernorm", hidden)
        return hidden + (yield from self._walk_mlp(x))

    def _walk_mlp(self, x: Tensor) -> Walk:
        *_, mlp_input, mlp_output = self.groups
        yield mlp_input, x
        activation = ACTIVATIONS[self.activation]
        x = activation(self._linear("mlp.gate_proj", x)) * self._linear("mlp.up_proj", x)
        yield mlp_output, x
        return self._linear("mlp.down_proj", x)

    def forward(
        self, hidden: Tensor, observe: Callable[[LinearGroup, Tensor], None] | None = None
    ) -> Tensor:
        """The block as a whole.

        Args:
            hidden: ``[batch, sequence, hidden_size]``.
            observe: Called with each group and its input.

        Returns:
            The block's output, ``[batch, sequence, hidden_size]``.
        """
        walk = self.walk(hidden)
        for _ in self.groups:
            group, x = next(walk)
            if observe is not None:
                observe(group, x)
        return finish(walk)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.tensors.get(f"{name}.bias")
        return functional.linear(
            x,
            self.tensors[f"{name}.weight"].to(self.dtype),
            None if bias is None else bias.to(self.dtype),
        )

    def _norm(self, name: str, x: Tensor) -> Tensor:
        wide = x.float()
        normalized = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.norm_eps)
        weight = self.tensors[f"{name}.weight"] + self.norm_offset
        return (weight * normalized).to(self.dtype)

    def _attention(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        query = self._heads("q", x)
        key = self._heads("k", x)
        value = self._heads("v", x)
        cosines, sines = self.rotary.tables(length, x.dtype)
        mixed = causal_attention(
            rotate(query, cosines, sines),
            rotate(key, cosines, sines),
            value,
            scale=self.head_dim**-0.5,
            window=self.sliding_window,
        )
        return mixed.transpose(1, 2).flatten(2)

    def _heads(self, kind: str, x: Tensor) -> Tensor:
        projected = self._linear(f"self_attn.{kind}_proj", x).unflatten(-1, (-1, self.head_dim))
        norm = f"self_attn.{kind}_norm"
        if f"{norm}.weight" in self.tensors:
            projected = self._norm(norm, projected)
        return projected.transpose(1, 2)


def finish(walk: Walk) -> Tensor:
    """Goes on from the last group to the end of a walk.

    Returns:
        The block's output.
    """
    try:
        next(walk)
    except StopIteration as end:
        return end.value
    raise RuntimeError("the walk has not come to its last group")
