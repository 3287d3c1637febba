"""Quantizes one block: its linears by shared input, each on what the quantized ones before give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from quantlib.blockwise.statistics import SeenInputs, TokenKinds, energy_ratio
from quantlib.errors import QuantizationError
from quantlib.models.folding import Fold
from quantlib.models.layout import SharedInput
from quantlib.models.streamed import Block, BlockWalk, Standing
from quantlib.numbers.inputs import input_scale
from quantlib.numbers.quantized import QuantizedLinear
from quantlib.quantizers.base import BaseQuantizer, BatchQuantizer, InputStatistics, QuantizedInput
from quantlib.quantizers.batches import experts_at_once
from quantlib.schemes import is_static


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
        expert_kinds: Where they are too few, how many of them are of each kind of document.
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
    expert_kinds: dict[str, int] | None = None

    def as_json(self) -> dict[str, Any]:
        """The record of the report."""
        return asdict(self)


@dataclass(frozen=True)
class QuantizedBlock:
    """What quantizing a block gave.

    Attributes:
        linears: By name within the block.
        unstacked: Weights of experts that stay exact where others of the same mixture do not, so
            that the tensor with all of them goes; by name within the block, as stored.
        changed: Other tensors that are not what they were, by name within the block, as stored.
        errors: One per quantized linear.
        divided: What outputs of linears are divided by because the method folded scales into them,
            float32 ``[out_features]`` by name within the block.
    """

    linears: dict[str, QuantizedLinear]
    unstacked: dict[str, Tensor]
    changed: dict[str, Tensor]
    errors: list[LinearError]
    divided: dict[str, Tensor] = field(default_factory=dict)


Smooth = Callable[[Block, Sequence[SharedInput]], dict[str, Tensor]]
"""Folds an outlier suppressor's scales into a block, for the given shared inputs; gives what
changed besides the weights of linears."""


def quantize_block(
    block: Block,
    walk: BlockWalk | None,
    quantizers: Mapping[str, BaseQuantizer],
    stored: torch.dtype,
    *,
    smooth: Smooth | None = None,
    min_expert_tokens: int = 1,
    kinds: TokenKinds | None = None,
) -> QuantizedBlock:
    """Quantizes a block and moves the calibration tokens through it.

    Linears that share an input are calibrated on what the quantized ones before them give, and no
    linear is computed twice.

    Args:
        block: The block; its weights become the dequantized ones, for the input that it has.
        walk: The calibration tokens, which stand before it; None without calibration.
        quantizers: The method, set up for the scheme of each linear, by name within the block;
            one for all linears of one scheme. Linears without one stay exact.
        stored: The dtype in which scales are stored.
        smooth: Folds scales into the block before it is quantized.
        min_expert_tokens: An expert that fewer tokens are routed to is calibrated on all tokens
            that enter its mixture.
        kinds: Of which kind of document each token is; None where that is not known.

    Raises:
        QuantizationError: A linear could not be quantized.
    """
    job = _Job(block, stored, QuantizedBlock({}, {}, {}, []))
    at_once = 1
    if walk is not None and any(isinstance(q, BatchQuantizer) for q in quantizers.values()):
        at_once = experts_at_once(block.expert_shapes, block.device.type)
    wanted = [
        shared
        for shared in block.inputs
        if shared.expert is not None or not quantizers.keys().isdisjoint(shared.linears)
    ]
    standings: Iterable[Standing] = (Standing(shared, [], []) for shared in wanted)
    if walk is not None:
        standings = walk.standings(block, wanted, at_once)
    if smooth is not None:
        dense = [shared for shared in block.inputs if shared.expert is None]
        job.result.changed.update(smooth(block, dense))
    smoothed: set[int] = set()
    waiting: list[_Waiting] = []
    for standing in standings:
        shared = standing.shared
        if smooth is not None and shared.expert is not None and shared.expert not in smoothed:
            smoothed.add(shared.expert)
            of_expert = [each for each in block.inputs if each.expert == shared.expert]
            job.result.changed.update(smooth(block, of_expert))
        by_quantizer = _by_quantizer(shared, quantizers)
        if shared.expert is not None:
            for linear in shared.linears:
                if linear not in quantizers and f"{linear}.weight" not in block.stored:
                    job.result.unstacked[linear] = block.weight(linear).to(stored).clone()
        if by_quantizer:
            needs_hessian = any(quantizer.needs_hessian for quantizer in by_quantizer)
            needs_scale = any(map(has_static_inputs, by_quantizer))
            seen = SeenInputs(needs_hessian, needs_scale)
            for x in standing.inputs:
                seen.add(x)
            calibrated_on: Literal["routed", "all"] | None = None
            expert_tokens = expert_kinds = None
            if walk is not None and shared.expert is not None:
                expert_tokens, calibrated_on = seen.tokens, "routed"
                if expert_tokens < min_expert_tokens:
                    calibrated_on = "all"
                    expert_kinds = None if kinds is None else kinds.count(standing.rows)
                    seen = SeenInputs(needs_hessian, needs_scale)
                    for everyone in standing.everyone:
                        seen.add(everyone())
            hessian = seen.hessian()
            waiting += [
                _Waiting(
                    shared,
                    names,
                    quantizer,
                    InputStatistics(hessian, job.fold(shared, names)),
                    static_scale(quantizer, seen.largest),
                    expert_tokens,
                    calibrated_on,
                    expert_kinds,
                )
                for quantizer, names in by_quantizer.items()
            ]
        if _is_last(shared, at_once):
            job.quantize(waiting)
            waiting.clear()
    return job.in_order()


def _by_quantizer(
    shared: SharedInput, quantizers: Mapping[str, BaseQuantizer]
) -> dict[BaseQuantizer, list[str]]:
    """The linears of an input that are quantized, those of one scheme together."""
    found: dict[BaseQuantizer, list[str]] = {}
    for name in shared.linears:
        if name in quantizers:
            found.setdefault(quantizers[name], []).append(name)
    return found


def static_scale(quantizer: BaseQuantizer, largest: float) -> Tensor | None:
    """What inputs are rounded by; None where that does not have to be known."""
    return (
        input_scale(largest, quantizer.section.activations)
        if has_static_inputs(quantizer)
        else None
    )


def has_static_inputs(quantizer: BaseQuantizer) -> bool:
    """Whether inputs are rounded by a number that is found in calibration."""
    return is_static(quantizer.section.activations)


def _is_last(shared: SharedInput, at_once: int) -> bool:
    """Whether no other expert is quantized with those that stood before and this one."""
    if shared.expert is None:
        return True
    return (shared.expert + 1) % at_once == 0 or shared.expert + 1 == shared.experts


@dataclass(frozen=True)
class _Waiting:
    """Linears of one scheme that share an input, once all batches have brought what they read.

    Attributes:
        shared: The input.
        names: The linears.
        quantizer: The method, set up for their scheme.
        inputs: What is known of it.
        input_scale: What it is rounded by, if that has to be known.
        expert_tokens: As of :class:`LinearError`.
        calibrated_on: The same.
        expert_kinds: The same.
    """

    shared: SharedInput
    names: list[str]
    quantizer: BaseQuantizer
    inputs: InputStatistics
    input_scale: Tensor | None
    expert_tokens: int | None
    calibrated_on: Literal["routed", "all"] | None
    expert_kinds: dict[str, int] | None


@dataclass(frozen=True)
class _Job:
    """One block on its way."""

    block: Block
    stored: torch.dtype
    result: QuantizedBlock

    def fold(self, shared: SharedInput, names: Sequence[str]) -> Fold | None:
        """Where scales of an input can go: into a norm, or into a linear that is quantized itself.

        Args:
            shared: The input.
            names: Those of its linears that are quantized.
        """
        producer = shared.producer
        if producer is None or len(names) < len(shared.linears):
            return None
        if not producer.norm:
            made = self.result.linears.get(producer.name)
            if made is None or not made.rows_are_free:
                return None
        columns = self.block.weight(names[0]).shape[1]
        return Fold.of(self.block, producer, columns)

    def in_order(self) -> QuantizedBlock:
        """The result in the order of the block's linears, whatever was quantized together."""
        result = self.result
        linears = [linear for shared in self.block.inputs for linear in shared.linears]
        place = {linear: number for number, linear in enumerate(linears)}
        return replace(
            result,
            linears={name: result.linears[name] for name in linears if name in result.linears},
            unstacked={
                name: result.unstacked[name] for name in linears if name in result.unstacked
            },
            errors=sorted(result.errors, key=lambda error: place[error.linear]),
        )

    def quantize(self, waiting: Sequence[_Waiting]) -> None:
        """Quantizes linears, those of one shape together, and adds them to the result."""
        alike: dict[Any, list[_Waiting]] = {}
        for each in waiting:
            shapes = tuple(self.block.weight(name).shape for name in each.names)
            kind = (shapes, each.inputs.fold is None, each.quantizer)
            alike.setdefault(kind, []).append(each)
        for batch in alike.values():
            weights = [
                {name: self.block.weight(name).float() for name in each.names} for each in batch
            ]
            for each, own, done in zip(batch, weights, self._codes(batch, weights), strict=True):
                self._keep(each, own, done)

    def _codes(
        self, batch: Sequence[_Waiting], weights: Sequence[Mapping[str, Tensor]]
    ) -> Sequence[QuantizedInput]:
        inputs, quantizer = [each.inputs for each in batch], batch[0].quantizer
        try:
            if isinstance(quantizer, BatchQuantizer):
                return quantizer.quantize_batch(weights, inputs, self.stored)
            return [
                quantizer.quantize(own, known, self.stored)
                for own, known in zip(weights, inputs, strict=True)
            ]
        except QuantizationError as error:
            where = f"block {self.block.index}: {error.linear}"
            raise QuantizationError(where, error.what) from None

    def _keep(
        self, waiting: _Waiting, weights: Mapping[str, Tensor], quantized: QuantizedInput
    ) -> None:
        """Adds linears to the result, and lets the walk go on with what their codes stand for."""
        block, result = self.block, self.result
        if quantized.input_scales is not None:
            _fold(waiting.inputs, quantized.input_scales, result)
        hessian = waiting.inputs.hessian
        for name, linear in quantized.linears.items():
            weight, restored = weights[name], linear.dequantize()
            if quantized.input_scales is not None:
                # The walk goes on with the input as it was.
                restored = restored / quantized.input_scales
            change = restored - weight
            result.errors.append(
                LinearError(
                    block=block.index,
                    linear=name,
                    relative_error=None
                    if hessian is None
                    else energy_ratio(change, weight, hessian),
                    relative_weight_error=energy_ratio(change, weight, None),
                    damping=quantized.damping,
                    damping_attempts=quantized.damping_attempts,
                    expert=waiting.shared.expert,
                    expert_tokens=waiting.expert_tokens,
                    calibrated_on=waiting.calibrated_on,
                    expert_kinds=waiting.expert_kinds,
                )
            )
            block.tensors[f"{name}.weight"] = restored
            block.tensors.forget(name)
            result.linears[name] = replace(linear, input_scale=waiting.input_scale)


def _fold(inputs: InputStatistics, scales: Tensor, result: QuantizedBlock) -> None:
    """Folds scales into a norm, or into a linear that was quantized before."""
    fold = inputs.fold
    if fold is None:
        raise ValueError("the quantizer scales an input that has to stay")
    producer = result.linears.get(fold.producer.name)
    if producer is None:
        result.changed.update(fold.norm(scales))
    else:
        divisors = fold.divisors(scales)
        result.linears[fold.producer.name] = producer.divide_rows(divisors)
        result.divided[fold.producer.name] = divisors
        result.changed.update(fold.bias(scales))
