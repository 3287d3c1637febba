"""Quantizes one block: its groups of linears one after the other, each on quantized inputs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

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
        expert: Which expert of a mixture it belongs to, or None.
        expert_tokens: Calibration tokens that were routed to the expert; None outside of experts
            and without calibration.
        calibrated_on: Whether those tokens were looked at, or all that enter the mixture, since
            they are too few; None where there is no such number.
    """

    block: int
    linear: str
    relative_error: float | None
    relative_weight_error: float
    damping: float | None
    damping_attempts: int
    expert: int | None = None
    expert_tokens: int | None = None
    calibrated_on: Literal["routed", "all"] | None = None

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
    min_expert_tokens: int = 1,
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
        min_expert_tokens: An expert that fewer tokens are routed to is calibrated on all tokens
            that enter its mixture.
        last: Whether no other block takes this one's outputs, which are then not computed.

    Raises:
        QuantizationError: A linear could not be quantized.
    """
    result = QuantizedBlock({}, {}, [])
    walks = [block.walk(hidden) for hidden in batches]
    batches.clear()  # the walks hold what they need
    for group in block.groups:
        names = [name for name in group.linears if name not in exact]
        seen = _Inputs(quantizer.needs_hessian and bool(names), static_activations and bool(names))
        for walk in walks:
            seen.add(next(walk)[1])
        calibrated_on: Literal["routed", "all"] | None = None
        expert_tokens = None
        if names and walks and group.expert is not None:
            expert_tokens, calibrated_on = seen.tokens, "routed"
            if expert_tokens < min_expert_tokens:
                calibrated_on = "all"
                seen = _Inputs(quantizer.needs_hessian, static_activations)
                for walk in walks:
                    seen.add(walk.send(True)[1])
        if not names:
            continue
        fold = None
        if group.producer is not None and len(names) == len(group.linears):
            columns = block.tensors[f"{names[0]}.weight"].shape[1]
            fold = Fold.of(block, group.producer, columns, stored)
        inputs = GroupInputs(seen.hessian(), fold)
        errors = _quantize_group(block, names, inputs, quantizer, stored, seen.scale(), result)
        result.errors.extend(
            replace(
                error,
                expert=group.expert,
                expert_tokens=expert_tokens,
                calibrated_on=calibrated_on,
            )
            for error in errors
        )
    if not last:
        batches += [finish(walk) for walk in walks]
    return result


class _Inputs:
    """What is kept of the inputs of a group, as they come."""

    def __init__(self, needs_hessian: bool, needs_scale: bool) -> None:
        self._needs_hessian = needs_hessian
        self._needs_scale = needs_scale
        self._accumulator: HessianAccumulator | None = None
        self._largest = 0.0
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """Looks at tokens, ``[..., in_features]``."""
        self.tokens += x.numel() // x.shape[-1]
        if self._needs_hessian:
            if self._accumulator is None:
                self._accumulator = HessianAccumulator(x.shape[-1], x.device)
            self._accumulator.add(x)
        if self._needs_scale and x.numel():
            self._largest = max(self._largest, float(x.abs().max()))

    def hessian(self) -> Tensor | None:
        """None where nobody needs it."""
        return None if self._accumulator is None else self._accumulator.hessian()

    def scale(self) -> Tensor | None:
        """The step to which inputs are rounded; None where it does not have to be known."""
        if not self._needs_scale:
            return None
        # An input of zeros would make the scale one that nothing can be divided by.
        return torch.tensor([max(self._largest, 1e-12) / 127])


def _quantize_group(
    block: DecoderBlock,
    names: list[str],
    inputs: GroupInputs,
    quantizer: BaseQuantizer,
    stored: torch.dtype,
    input_scale: Tensor | None,
    result: QuantizedBlock,
) -> list[LinearError]:
    """Quantizes linears that share an input and adds them to the result, apart from the errors."""
    weights = {name: block.tensors[f"{name}.weight"].float() for name in names}
    try:
        group = quantizer.quantize(weights, inputs, stored)
    except QuantizationError as error:
        raise QuantizationError(f"block {block.index}: {error.linear}", error.what) from None
    if group.input_scales is not None:
        _fold(inputs, group.input_scales, result)
    hessian = inputs.hessian
    errors = []
    for name, linear in group.linears.items():
        weight, restored = weights[name], linear.dequantize()
        if group.input_scales is not None:
            # The walks go on with the input as it was.
            restored = restored / group.input_scales
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
        result.linears[name] = replace(linear, input_scale=input_scale)
    return errors


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
