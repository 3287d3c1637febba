"""Quantizes a matrix of many rows, some at a time: a head has as many as there are tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantlib.blockwise.statistics import energy
from quantlib.formats import BaseFormat
from quantlib.numbers.quantized import QuantizedLinear
from quantlib.quantizers.base import BaseQuantizer, InputStatistics
from quantlib.quantizers.batches import PIECE_ELEMENTS

_MULTIPLE = 128
"""Of rows in a piece: whole words of codes, in every format and axis."""

Rows = Callable[[int, int], Tensor]
"""Reads the rows from one number to another, ``[rows, in_features]``, in any dtype."""


@dataclass(frozen=True)
class QuantizedRows:
    """What quantizing a matrix gave.

    Attributes:
        tensors: By the last part of their names, on the CPU.
        relative_error: As of a ``LinearError``; None without calibration.
        relative_weight_error: The same.
    """

    tensors: dict[str, Tensor]
    relative_error: float | None
    relative_weight_error: float


def quantize_rows(
    name: str,
    shape: tuple[int, int],
    read: Rows,
    quantizer: BaseQuantizer,
    made_by: BaseFormat,
    inputs: InputStatistics,
    input_scale: Tensor | None,
    stored: torch.dtype,
) -> QuantizedRows:
    """Quantizes a matrix whose rows have nothing to do with each other.

    Where they share one number, for the largest of all weights, every piece is given the row that
    holds it, too.

    Args:
        name: Of the linear, for messages.
        shape: ``(out_features, in_features)``.
        read: Reads rows.
        quantizer: The method, set up for its scheme.
        made_by: The format to write.
        inputs: What is known of its input.
        input_scale: What its input is rounded by, if that is a stored number.
        stored: The dtype in which scales are stored.

    Raises:
        QuantizationError: It could not be quantized.
    """
    scheme, activations = quantizer.section.weights, quantizer.section.activations
    largest = _row_of_largest(read, shape) if scheme.rows_share else None
    hessian = inputs.hessian
    pieces, changes, wholes = [], [0.0, 0.0], [0.0, 0.0]
    for start, stop in _pieces(shape):
        weight = read(start, stop).float()
        known = weight if largest is None else torch.cat([weight, largest])
        linear = quantizer.quantize({name: known}, inputs, stored).linears[name]
        linear = _first_rows(replace(linear, input_scale=input_scale), stop - start)
        change = linear.dequantize() - weight
        for at, known_of in enumerate((None, hessian)):
            if at == 0 or known_of is not None:
                changes[at] += energy(change, known_of)
                wholes[at] += energy(weight, known_of)
        tensors = made_by.tensors(linear, activations)
        pieces.append({part: tensor.cpu() for part, tensor in tensors.items()})
    ratios = [part / whole if whole else 0.0 for part, whole in zip(changes, wholes, strict=True)]
    return QuantizedRows(made_by.joined(pieces), None if hessian is None else ratios[1], ratios[0])


def _pieces(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    rows, columns = shape
    step = max(1, PIECE_ELEMENTS // columns // _MULTIPLE) * _MULTIPLE
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _row_of_largest(read: Rows, shape: tuple[int, int]) -> Tensor:
    """The row with the weight of the largest magnitude, float32 ``[1, in_features]``."""
    found, most = None, -1.0
    for start, stop in _pieces(shape):
        weight = read(start, stop).float()
        largest, at = weight.abs().amax(1).max(0)
        if float(largest) > most:
            found, most = weight[int(at)][None].clone(), float(largest)
    assert found is not None
    return found


def _first_rows(linear: QuantizedLinear, count: int) -> QuantizedLinear:
    """A linear without the rows behind the first ones; scales that all share stay."""
    rows = len(linear.codes)
    if rows == count:
        return linear
    scales = linear.scales[:count] if len(linear.scales) == rows else linear.scales
    return replace(linear, codes=linear.codes[:count], scales=scales)
