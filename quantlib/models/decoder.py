"""One decoder block, computed in pieces: up to the input of each group of linears.

Calibration needs the inputs of a block's linears one group after the other, each computed with
the groups before it quantized already. A block is therefore cut where its linears take their
inputs, and no linear is computed twice. The arithmetic is that of transformers'
``modeling_llama.py`` and ``modeling_qwen3.py``; the tests compare with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from quantlib.models.base import LinearGroup

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding.

    Attributes:
        frequencies: Radians per token, of each pair of channels; float32 ``[head_dim / 2]``.
        scale: Factor on the rotated queries and keys.
    """

    frequencies: Tensor
    scale: float

    @classmethod
    def from_parameters(
        cls, parameters: Mapping[str, Any], head_dim: int, max_positions: int, device: torch.device
    ) -> Rotary:
        """Computes the frequencies.

        Args:
            parameters: ``rope_type`` (default, linear, llama3 or yarn) and what it needs, as
                transformers writes them.
            head_dim: Channels of a head.
            max_positions: ``max_position_embeddings`` of the config.
            device: Where to put them.
        """
        theta = float(parameters["rope_theta"])
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        plain = 1.0 / theta**exponents
        kind, scale = parameters["rope_type"], 1.0
        if kind == "linear":
            plain = plain / parameters["factor"]
        elif kind == "llama3":
            plain = _llama3_frequencies(plain, parameters)
        elif kind == "yarn":
            plain, scale = _yarn_frequencies(plain, parameters, theta, head_dim, max_positions)
        return cls(plain.to(device), scale)

    def tables(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of ``length`` positions, each ``[length, head_dim]``."""
        positions = torch.arange(length, device=self.frequencies.device, dtype=torch.float32)
        angles = torch.outer(positions, self.frequencies).repeat(1, 2)
        return (angles.cos() * self.scale).to(dtype), (angles.sin() * self.scale).to(dtype)


def _llama3_frequencies(plain: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    """Slow frequencies divided by a factor, fast ones kept, a ramp between (Llama 3.1)."""
    original = parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    turns = original * plain / (2 * math.pi)
    ramp = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (ramp + (1 - ramp) / parameters["factor"])


def _yarn_frequencies(
    plain: Tensor,
    parameters: Mapping[str, Any],
    theta: float,
    head_dim: int,
    max_positions: int,
) -> tuple[Tensor, float]:
    """YaRN (Peng et al. 2023, sections 3.2 and 3.4), with transformers' defaults."""
    original = parameters.get("original_max_position_embeddings") or max_positions
    factor = parameters.get("factor") or max_positions / original

    def pair_that_turns(times: float) -> float:
        return head_dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    first = pair_that_turns(parameters.get("beta_fast") or 32)
    last = pair_that_turns(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    pairs = torch.arange(head_dim // 2, dtype=torch.float32)
    interpolated = ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)
    frequencies = plain * (1 - interpolated) + plain / factor * interpolated
    scale = parameters.get("attention_factor")
    if scale is None:
        magnitude, all_dims = parameters.get("mscale"), parameters.get("mscale_all_dim")
        if magnitude and all_dims:
            scale = _yarn_scale(factor, magnitude) / _yarn_scale(factor, all_dims)
        else:
            scale = _yarn_scale(factor, 1.0)
    return frequencies, float(scale)


def _yarn_scale(factor: float, magnitude: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * magnitude * math.log(factor) + 1.0


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

    def group_input(self, group: int, hidden: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the input of a group from that of the group before it.

        Args:
            group: Index into ``groups``.
            hidden: The residual stream, ``[batch, sequence, hidden_size]``, float32 or in the dtype
                of the products.
            previous: The input of group ``group - 1``; not used for the first one.

        Returns:
            The residual stream and the input of the group, ``[batch, sequence, in_features]``.
        """
        if group == 0:
            return hidden, self._norm("input_layernorm", hidden)
        if group == 1:
            return hidden, self._attention(previous)
        if group == 2:
            hidden = hidden + self._linear("self_attn.o_proj", previous)
            return hidden, self._norm("post_attention_layernorm", hidden)
        gate = _ACTIVATIONS[self.activation](self._linear("mlp.gate_proj", previous))
        return hidden, gate * self._linear("mlp.up_proj", previous)

    def output(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """The block's output, from the residual stream and the input of the last group."""
        return hidden + self._linear("mlp.down_proj", previous)

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
        previous = hidden
        for number, group in enumerate(self.groups):
            hidden, previous = self.group_input(number, hidden, previous)
            if observe is not None:
                observe(group, previous)
        return self.output(hidden, previous)

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
        return (self.tensors[f"{name}.weight"] * normalized).to(self.dtype)

    def _attention(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        query = self._heads("q", x)
        key = self._heads("k", x)
        value = self._heads("v", x)
        cosines, sines = self.rotary.tables(length, x.dtype)
        query = _rotate(query, cosines, sines)
        key = _rotate(key, cosines, sines)
        repeats = self.heads // self.key_value_heads
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        mask = self._sliding_mask(length, x.device)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None
        )
        return mixed.transpose(1, 2).flatten(2)

    def _heads(self, kind: str, x: Tensor) -> Tensor:
        projected = self._linear(f"self_attn.{kind}_proj", x).unflatten(-1, (-1, self.head_dim))
        norm = f"self_attn.{kind}_norm"
        if f"{norm}.weight" in self.tensors:
            projected = self._norm(norm, projected)
        return projected.transpose(1, 2)

    def _sliding_mask(self, length: int, device: torch.device) -> Tensor | None:
        if self.sliding_window is None or self.sliding_window >= length:
            return None
        positions = torch.arange(length, device=device)
        distance = positions[:, None] - positions[None, :]
        return (distance >= 0) & (distance < self.sliding_window)


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines
