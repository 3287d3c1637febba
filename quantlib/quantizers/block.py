"""Quantizes one block: its groups of linears one after the other, each on quantized inputs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from quantlib.calibration.statistics import PANEL_COLUMNS, HessianAccumulator
from quantlib.errors import QuantizationError
from quantlib.models.decoder import DecoderBlock, finish
from quantlib.quantized import QuantizedLinear
from quantlib.quantizers.base import BaseQuantizer


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
        errors: One per quantized linear.
    """

    linears: dict[str, QuantizedLinear]
    errors: list[LinearError]


@torch.no_grad()
def quantize_block(
    block: DecoderBlock,
    batches: list[Tensor],
    quantizer: BaseQuantizer,
    exact: Collection[str],
    stored: torch.dtype,
    last: bool = False,
) -> QuantizedBlock:
    """Quantizes a block and moves the calibration tokens through it.

    Each group of linears is calibrated on inputs that the quantized groups before it give, and no
    linear is computed twice.

    Args:
        block: The block; its weights become the dequantized ones.
        batches: The block's inputs, ``[samples, sequence, hidden_size]`` each; replaced by its
            outputs. Empty without calibration.
        quantizer: The method.
        exact: Names within the block of the linears that stay exact.
        stored: The dtype in which scales are stored.
        last: Whether no other block takes this one's outputs, which are then not computed.

    Raises:
        QuantizationError: A linear could not be quantized.
    """
    linears: dict[str, QuantizedLinear] = {}
    errors: list[LinearError] = []
    walks = [block.walk(hidden) for hidden in batches]
    batches.clear()  # the walks hold what they need
    for group in block.groups:
        names = [name for name in group.linears if name not in exact]
        accumulator: HessianAccumulator | None = None
        for walk in walks:
            _, x = next(walk)
            if names:
                if accumulator is None:
                    accumulator = HessianAccumulator(x.shape[-1], x.device)
                accumulator.add(x)
        if names:
            hessian = None if accumulator is None else accumulator.hessian()
            quantized, group_errors = _quantize_group(block, names, hessian, quantizer, stored)
            linears |= quantized
            errors += group_errors
    if not last:
        batches += [finish(walk) for walk in walks]
    return QuantizedBlock(linears, errors)


def _quantize_group(
    block: DecoderBlock,
    names: list[str],
    hessian: Tensor | None,
    quantizer: BaseQuantizer,
    stored: torch.dtype,
) -> tuple[dict[str, QuantizedLinear], list[LinearError]]:
    weights = {name: block.tensors[f"{name}.weight"].float() for name in names}
    try:
        group = quantizer.quantize(weights, hessian, stored)
    except QuantizationError as error:
        raise QuantizationError(f"block {block.index}: {error.linear}", error.what) from None
    errors = []
    for name, linear in group.linears.items():
        weight, restored = weights[name], linear.dequantize()
        change = restored - weight
        errors.append(
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
    return dict(group.linears), errors


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
