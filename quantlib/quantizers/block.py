"""Quantizes one block: its groups of linears one after the other, each on quantized inputs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quantlib.calibration.statistics import PANEL_COLUMNS, HessianAccumulator
from quantlib.errors import QuantizationError
from quantlib.models.decoder import DecoderBlock, finish
from quantlib.models.folding import Fold
from quantlib.quantized import QuantizedLinear
from quantlib.quantizers.base import BaseQuantizer, GroupInputs


@dataclass(frozen=True)
class LinearError:
    """How much quantizing one linear changed it.

    Attributes:
        block: Index of its block.
        linear: Its name within the block.
        relative_error: Energy of the change of its output over the energy of its output, on the
            calibration tokens; None without calibration.
        relative_weight_error: Energy of the change of its weight over the energy of its weight.
        damping: Share of the Hessian's mean diagonal that was added to it, or None.
        damping_attempts: Factorizations tried.
    """

    block: int
    linear: str
    relative_error: float | None
    relative_weight_error: float
    damping: float | None
    damping_attempts: int

    def as_json(self) -> dict[str, Any]:
        """The record of the report."""
        return asdict(self)


@dataclass(frozen=True)
class QuantizedBlock:
    """What quantizing a block gave.

    Attributes:
        linears: By name within the block.
        changed: Other tensors that are not what they were, by name within the block, as stored.
        errors: One per quantized linear.
    """

    linears: dict[str, QuantizedLinear]
    changed: dict[str, Tensor]
    errors: list[LinearError]


@torch.no_grad()
def quantize_block(
    block: DecoderBlock,
    batches: list[Tensor],
    quantizer: BaseQuantizer,
    exact: Collection[str],
    stored: torch.dtype,
    *,
    static_activations: bool = False,
    last: bool = False,
) -> QuantizedBlock:
    """Quantizes a block and moves the calibration tokens through it.

    Each group of linears is calibrated on inputs that the quantized groups before it give, and no
    linear is computed twice.

    Args:
        block: The block; its weights become the dequantized ones, for the input that it has.
        batches: The block's inputs, ``[samples, sequence, hidden_size]`` each; replaced by its
            outputs. Empty without calibration.
        quantizer: The method.
        exact: Names within the block of the linears that stay exact.
        stored: The dtype in which scales are stored.
        static_activations: Whether the quantized linears' inputs get one scale each.
        last: Whether no other block takes this one's outputs, which are then not computed.

    Raises:
        QuantizationError: A linear could not be quantized.
    """
    result = QuantizedBlock({}, {}, [])
    walks = [block.walk(hidden) for hidden in batches]
    batches.clear()  # the walks hold what they need
    for group in block.groups:
        names = [name for name in group.linears if name not in exact]
        accumulator: HessianAccumulator | None = None
        largest = 0.0
        for walk in walks:
            _, x = next(walk)
            if not names:
                continue
            if quantizer.needs_hessian:
                if accumulator is None:
                    accumulator = HessianAccumulator(x.shape[-1], x.device)
                accumulator.add(x)
            if static_activations:
                largest = max(largest, float(x.abs().max()))
        if names:
            hessian = None if accumulator is None else accumulator.hessian()
            fold = None
            if group.producer is not None and len(names) == len(group.linears):
                columns = block.tensors[f"{names[0]}.weight"].shape[1]
                fold = Fold.of(block, group.producer, columns, stored)
            inputs = GroupInputs(hessian, fold)
            input_scale = None
            if static_activations:
                # An input of zeros would make the scale one that nothing can be divided by.
                input_scale = torch.tensor([max(largest, 1e-12) / 127])
            _quantize_group(block, names, inputs, quantizer, stored, input_scale, result)
    if not last:
        batches += [finish(walk) for walk in walks]
    return result


def _quantize_group(
    block: DecoderBlock,
    names: list[str],
    inputs: GroupInputs,
    quantizer: BaseQuantizer,
    stored: torch.dtype,
    input_scale: Tensor | None,
    result: QuantizedBlock,
) -> None:
    """Quantizes linears that share an input and adds them to the result."""
    weights = {name: block.tensors[f"{name}.weight"].float() for name in names}
    try:
        group = quantizer.quantize(weights, inputs, stored)
    except QuantizationError as error:
        raise QuantizationError(f"block {block.index}: {error.linear}", error.what) from None
    if group.input_scales is not None:
        _fold(inputs, group.input_scales, result)
    hessian = inputs.hessian
    for name, linear in group.linears.items():
        weight, restored = weights[name], linear.dequantize()
        if group.input_scales is not None:
            # The walks go on with the input as it was.
            restored = restored / group.input_scales
        change = restored - weight
        result.errors.append(
            LinearError(
                block=block.index,
                linear=name,
                relative_error=None if hessian is None else _energy_ratio(change, weight, hessian),
                relative_weight_error=_energy_ratio(change, weight, None),
                damping=group.damping,
                damping_attempts=group.damping_attempts,
            )
        )
        block.tensors[f"{name}.weight"] = restored.to(block.dtype)
        result.linears[name] = replace(linear, input_scale=input_scale)


def _fold(inputs: GroupInputs, scales: Tensor, result: QuantizedBlock) -> None:
    """Folds scales into what was quantized before, or into what stays exact."""
    fold = inputs.fold
    if fold is None:
        raise ValueError("the quantizer scales an input that has to stay")
    producer = result.linears.get(fold.producer.name)
    if producer is None:
        result.changed.update(fold.tensors(scales))
    else:
        result.linears[fold.producer.name] = producer.divide_rows(fold.divisors(scales))
        result.changed.update(fold.bias(scales))


def _energy_ratio(change: Tensor, weight: Tensor, hessian: Tensor | None) -> float:
    """tr(D H D.T) / tr(W H W.T), with the identity for a missing Hessian."""
    whole = _energy(weight, hessian)
    return _energy(change, hessian) / whole if whole > 0 else 0.0


def _energy(matrix: Tensor, hessian: Tensor | None) -> float:
    """tr(M H M.T), from the upper half of H, which is symmetric."""
    if hessian is None:
        return float(matrix.square().sum())
    total = matrix.new_zeros(())
    for start in range(0, matrix.shape[1], PANEL_COLUMNS):
        columns = slice(start, start + PANEL_COLUMNS)
        panel = matrix[:, columns]
        before = matrix[:, :start] @ hessian[:start, columns]
        within = panel @ hessian[columns, columns]
        total += panel.flatten().dot((2 * before + within).flatten())
    return float(total)
