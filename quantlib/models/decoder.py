"""One decoder block, computed in pieces: up to the input of each group of linears.

Calibration needs the inputs of a block's linears one group after the other, each computed with
the groups before it quantized already. A block is therefore walked: the walk stops wherever linears
take their input, and no linear is computed twice. The arithmetic is that of each family's
``modeling_*.py`` in transformers; the tests compare with them. What differs between families is
data: a block's groups, its tensors and its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from quantlib.models.attention import causal_attention
from quantlib.models.base import LinearGroup
from quantlib.models.rotary import Rotary, rotate
from quantlib.models.settings import BlockSettings

Walk = Generator[tuple[LinearGroup, Tensor], bool | None, Tensor]
"""A block being computed: yields each group with its input, ``[..., in_features]``, before its
linears are used, and returns the block's output. A walk that stands at a group of an expert and is
sent True yields the group again, with what its input would be if all tokens came to the expert."""


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}
"""The activations of MLPs, by their names in configs."""


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
        settings: The numbers that it is computed with.
    """

    index: int
    groups: tuple[LinearGroup, ...]
    tensors: dict[str, Tensor]
    dtype: torch.dtype
    rotary: Rotary
    settings: BlockSettings

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
        norms = self.settings.norms
        x = self._norm(norms.before_attention, hidden)
        yield attention_input, x
        x = self._attention(x)
        yield attention_output, x
        hidden = self._add(hidden, self._linear("self_attn.o_proj", x), norms.after_attention)
        del x  # what this frame names stays in memory while the walk stands in the MLP
        output = yield from self._walk_mlp(self._norm(norms.before_mlp, hidden))
        return self._add(hidden, output, norms.after_mlp)

    def _walk_mlp(self, x: Tensor) -> Walk:
        *_, mlp_input, mlp_output = self.groups
        yield mlp_input, x
        x = self._gated(mlp_input, x)
        yield mlp_output, x
        return self._linear("mlp.down_proj", x)

    def _gated(self, group: LinearGroup, x: Tensor) -> Tensor:
        # Not within the walk: while that stands, all that its frame names stays in memory.
        given = [self._linear(name, x) for name in group.linears]
        gate, up = given if len(given) == 2 else given[0].chunk(2, -1)
        return ACTIVATIONS[self.settings.activation](gate) * up

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

    def _outputs(self, group: LinearGroup, x: Tensor, sizes: tuple[int, ...]) -> Sequence[Tensor]:
        """What the linears of a group give, in parts of so many channels.

        A checkpoint has a linear for each part, or one for all of them in a row.
        """
        given = [self._linear(name, x) for name in group.linears]
        return given if len(given) == len(sizes) else torch.cat(given, -1).split(sizes, -1)

    def _norm(self, name: str | None, x: Tensor) -> Tensor:
        if name is None:
            return x.to(self.dtype)
        wide = x.float()
        mean_square = wide.square().mean(-1, keepdim=True)
        normalized = wide * torch.rsqrt(mean_square + self.settings.norm_eps)
        # An offset is added in float32: in 16 bits the sum would lose the weight's last bits.
        weight = self.tensors[f"{name}.weight"].float() + self.settings.norms.offset
        return (weight * normalized).to(self.dtype)

    def _add(self, hidden: Tensor, x: Tensor, norm: str | None) -> Tensor:
        if norm is not None:
            x = self._norm(norm, x)
        return torch.add(hidden, x, alpha=self.settings.residual_multiplier)

    def _attention(self, x: Tensor) -> Tensor:
        settings, length = self.settings, x.shape[1]
        keys = settings.key_value_heads * settings.head_dim
        sizes = (settings.heads * settings.head_dim, keys, keys)
        query, key, value = self._outputs(self.groups[0], x, sizes)
        cosines, sines = self.rotary.tables(length, x.dtype)
        mixed = causal_attention(
            rotate(self._heads(self._head_norm("q", query)), cosines, sines),
            rotate(self._heads(self._head_norm("k", key)), cosines, sines),
            self._heads(value),
            scale=settings.score_scale,
            window=settings.sliding_window,
            softcap=settings.score_softcap,
        )
        return mixed.transpose(1, 2).flatten(2)

    def _head_norm(self, kind: str, projected: Tensor) -> Tensor:
        """Normalizes queries or keys in a block that does.

        The norm is as wide as its weight: a head, or all heads together.
        """
        name = f"self_attn.{kind}_norm"
        weight = self.tensors.get(f"{name}.weight")
        if weight is None:
            return projected
        return self._norm(name, projected.unflatten(-1, (-1, len(weight)))).flatten(-2)

    def _heads(self, projected: Tensor) -> Tensor:
        """``[batch, heads, sequence, head_dim]``."""
        return projected.unflatten(-1, (-1, self.settings.head_dim)).transpose(1, 2)


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
