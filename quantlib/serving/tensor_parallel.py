"""Over how many GPUs vLLM can spread a model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from quantlib.recipe import WeightScheme

_OUTPUT = "o_proj"
_MLP_OUTPUTS = ("down_proj", "w2")
ROW_PARALLEL = (_OUTPUT, *_MLP_OUTPUTS)
"""Linears whose input channels are spread over the GPUs, by the last part of their names. Of the
other linears the outputs are spread: heads, and channels of the MLP."""


@dataclass(frozen=True)
class SharedInput:
    """The input of a row-parallel linear.

    Attributes:
        linear: Which one.
        channels: Of the input.
        multiple: What the channels that a GPU gets have to be a multiple of.
    """

    linear: str
    channels: int
    multiple: int


@dataclass(frozen=True)
class Sharding:
    """What tensor parallelism divides.

    Attributes:
        heads: Query heads.
        key_value_heads: Key and value heads; they are repeated where there are more GPUs.
        inputs: Of the row-parallel linears.
    """

    heads: int
    key_value_heads: int
    inputs: tuple[SharedInput, ...]

    def problems(self, size: int) -> list[str]:
        """Why ``size`` GPUs cannot share the model; empty where they can."""
        found = []
        if self.heads % size:
            found.append(f"{self.heads} attention heads cannot be divided by {size}")
        if self.key_value_heads % size and size % self.key_value_heads:
            found.append(
                f"{self.key_value_heads} key/value heads can be neither divided by {size} nor "
                "repeated evenly"
            )
        for shared in self.inputs:
            if shared.channels % size:
                found.append(
                    f"the {shared.channels} inputs of {shared.linear} cannot be divided by {size}"
                )
            elif (share := shared.channels // size) % shared.multiple:
                found.append(
                    f"each GPU would get {share} inputs of {shared.linear}, which are no whole "
                    f"groups of {shared.multiple}"
                )
        return found

    def sizes(self) -> list[int]:
        """The numbers of GPUs that can share the model, rising; 1 always can."""
        return [size for size in range(1, self.heads + 1) if size == 1 or not self.problems(size)]


def sharding_of(
    config: Mapping[str, Any],
    weights: WeightScheme | None,
    quantized: Collection[str] = ROW_PARALLEL,
) -> Sharding:
    """What tensor parallelism divides in a model.

    Args:
        config: The parsed ``config.json``.
        weights: How linears are quantized; None where they are not.
        quantized: Which of the row-parallel linears are quantized.
    """
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    inputs: list[tuple[tuple[str, ...], str, int]] = [((_OUTPUT,), _OUTPUT, heads * head_dim)]
    for field, label in (
        ("intermediate_size", _MLP_OUTPUTS[0]),
        ("moe_intermediate_size", f"an expert's {_MLP_OUTPUTS[0]}"),
    ):
        if config.get(field):
            inputs.append((_MLP_OUTPUTS, label, config[field]))
    multiple = 1
    if weights is not None and weights.type == "int":
        # Codes are packed into words of 32 bits.
        multiple = math.lcm(max(weights.group_size, 1), 32 // weights.bits)
    return Sharding(
        heads=heads,
        key_value_heads=config.get("num_key_value_heads") or heads,
        inputs=tuple(
            SharedInput(label, channels, multiple if any(n in quantized for n in names) else 1)
            for names, label, channels in inputs
        ),
    )
