"""Over how many GPUs vLLM can spread a model."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantlib.schemes import WeightScheme

_OUTPUT = "o_proj"
_MLP_OUTPUTS = ("down_proj", "w2")
ROW_PARALLEL = (_OUTPUT, *_MLP_OUTPUTS)
"""Linears whose input channels are spread over the GPUs, by the last part of their names. Of the
other linears the outputs are spread: heads, and channels of the MLP."""

_MOST_GPUS = 64
"""That are thought of where the number of heads is not known."""


@dataclass(frozen=True)
class DividedInput:
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
class DividedOutput:
    """The output of a column-parallel linear whose weights are quantized in blocks.

    vLLM requires whole blocks on each GPU of what it fuses (``fp8_utils.py``:
    ``validate_fp8_block_shape``), except outside of experts in the format ``fp8`` (``linear.py``:
    ``_maybe_allow_fp8_block_shape_mismatch``).

    Attributes:
        linear: Which one.
        channels: Of the output.
        multiple: Rows of a block.
        least: Channels that a GPU has at least: heads are repeated, not cut.
    """

    linear: str
    channels: int
    multiple: int
    least: int = 1


@dataclass(frozen=True)
class Sharding:
    """What tensor parallelism divides.

    Attributes:
        heads: Query heads; None where the config of a family that nobody knows does not say.
        key_value_heads: Key and value heads; they are repeated where there are more GPUs.
        inputs: Of the row-parallel linears.
        outputs: Of the others, where they are quantized in blocks of rows.
    """

    heads: int | None
    key_value_heads: int | None
    inputs: tuple[DividedInput, ...]
    outputs: tuple[DividedOutput, ...] = ()

    def problems(self, size: int) -> list[str]:
        """Why ``size`` GPUs cannot share the model; empty where they can."""
        found = []
        if self.heads and self.heads % size:
            found.append(f"{self.heads} attention heads cannot be divided by {size}")
        heads = self.key_value_heads
        if heads and heads % size and size % heads:
            found.append(
                f"{heads} key/value heads can be neither divided by {size} nor repeated evenly"
            )
        for divided in self.inputs:
            if divided.channels % size:
                found.append(
                    f"the {divided.channels} inputs of {divided.linear} cannot be divided by {size}"
                )
            elif (share := divided.channels // size) % divided.multiple:
                found.append(
                    f"each GPU would get {share} inputs of {divided.linear}, which are no whole "
                    f"groups of {divided.multiple}"
                )
        for output in self.outputs:
            share = max(output.channels // size, output.least)
            if share % output.multiple:
                found.append(
                    f"each GPU would get {share} outputs of {output.linear}, which are no whole "
                    f"blocks of {output.multiple}"
                )
        return found

    def sizes(self) -> list[int]:
        """The numbers of GPUs that can share the model, rising; 1 always can."""
        most = self.heads or _MOST_GPUS
        return [size for size in range(1, most + 1) if size == 1 or not self.problems(size)]


def sharding_of(
    config: Mapping[str, Any],
    weights: WeightScheme | None,
    quantized: Collection[str] = ROW_PARALLEL,
    block: tuple[int, int] | None = None,
    *,
    whole_outputs: bool = False,
) -> Sharding:
    """What tensor parallelism divides in a model.

    Args:
        config: The parsed ``config.json``.
        weights: How linears are quantized; None where they are not.
        quantized: Which of the row-parallel linears are quantized.
        block: Rows and columns that share a scale, where weights are quantized in blocks as FP8
            checkpoints are; ``weights`` is None then.
        whole_outputs: Whether outputs outside of experts have to be whole blocks as well.
    """
    heads = _count(config, "num_attention_heads")
    head_dim = _count(config, "head_dim")
    if heads and not head_dim:
        head_dim = (_count(config, "hidden_size") or 0) // heads
    inputs: list[tuple[tuple[str, ...], str, int]] = []
    if heads and head_dim:
        inputs.append(((_OUTPUT,), _OUTPUT, heads * head_dim))
    for field, label in (
        ("intermediate_size", _MLP_OUTPUTS[0]),
        ("moe_intermediate_size", f"an expert's {_MLP_OUTPUTS[0]}"),
    ):
        if channels := _count(config, field):
            inputs.append((_MLP_OUTPUTS, label, channels))
    multiple = 1
    if weights is not None:
        # Whole numbers are packed into words of 32 bits, FP4 into bytes.
        packed = 32 // weights.bits if weights.type == "int" else 8 // weights.bits
        multiple = math.lcm(max(weights.group_size, 1), packed)
        if weights.block_rows > 1:
            block, whole_outputs = (weights.block_rows, weights.group_size), True
    key_value_heads = _count(config, "num_key_value_heads") or heads
    outputs: tuple[DividedOutput, ...] = ()
    if block is not None and heads and key_value_heads and head_dim:
        rows, multiple = block
        outputs = tuple(
            _block_outputs(config, heads, key_value_heads, head_dim, rows, whole_outputs)
        )
    return Sharding(
        heads=heads,
        key_value_heads=key_value_heads,
        outputs=outputs,
        inputs=tuple(
            DividedInput(label, channels, multiple if any(n in quantized for n in names) else 1)
            for names, label, channels in inputs
        ),
    )


def joined(shardings: Sequence[Sharding]) -> Sharding:
    """What has to be divided where parts of a model are quantized in different ways."""
    multiples: dict[tuple[str, int], int] = {}
    for divided in (each for sharding in shardings for each in sharding.inputs):
        key = (divided.linear, divided.channels)
        multiples[key] = math.lcm(multiples.get(key, 1), divided.multiple)
    outputs = dict.fromkeys(each for sharding in shardings for each in sharding.outputs)
    inputs = tuple(DividedInput(*key, multiple) for key, multiple in multiples.items())
    return replace(shardings[0], inputs=inputs, outputs=tuple(outputs))


def _count(config: Mapping[str, Any], field: str) -> int | None:
    """A number above 0; None where the config says none."""
    value = config.get(field)
    return value if isinstance(value, int) and value > 0 else None


def _block_outputs(
    config: Mapping[str, Any],
    heads: int,
    key_value_heads: int,
    head_dim: int,
    rows: int,
    whole_outputs: bool,
) -> Iterator[DividedOutput]:
    experts = any(config.get(field) for field in ("num_local_experts", "num_experts"))
    if whole_outputs:
        yield DividedOutput("q_proj", heads * head_dim, rows)
        yield DividedOutput("k_proj and v_proj", key_value_heads * head_dim, rows, head_dim)
        if not experts:
            yield DividedOutput("gate_proj and up_proj", config["intermediate_size"], rows)
    inner = config.get("moe_intermediate_size") or (experts and config.get("intermediate_size"))
    if inner:
        yield DividedOutput("an expert's gate_proj and up_proj", inner, rows)
