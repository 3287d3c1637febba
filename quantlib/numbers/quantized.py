"""The value in which quantizers, formats and adapters meet."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantlib.numbers.scaling import decode_scales
from quantlib.schemes import WeightScheme


@dataclass(frozen=True)
class QuantizedLinear:
    """A linear's weight as codes.

    A weight is ``(code - zero_point) * scale``, and ``code * scale`` for codes that are floating
    point numbers; :mod:`quantlib.numbers.scaling` says how scales are stored. Groups are
    consecutive columns in all that is written: no format that vLLM serves carries another
    assignment. Some checkpoints that are read have one.

    Attributes:
        codes: uint8 ``[out_features, in_features]``, each below ``2 ** bits``; floating point
            numbers, float8_e4m3fn or what FP4 stands for, for a scheme of type float.
        scales: ``[blocks of rows, groups]``, as they are stored; a block is one row but for schemes
            whose rows share scales.
        zero_points: uint8 or int16 ``[out_features, groups]``; None for a symmetric scheme, whose
            zero point is ``2 ** (bits - 1)`` everywhere.
        scheme: What its numbers are.
        input_scale: float32 ``[1]``, what inputs are rounded by, as it is stored
            (:func:`quantlib.numbers.inputs.input_scale`); None where activations
            are not quantized, or by a dynamic scale.
        group_index: int64 ``[in_features]``, the group of each column; None where groups are
            consecutive columns, as many in each.
        overall: What stored scales are divided by, float32 ``[1]``; None where they are the scales.
    """

    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None
    scheme: WeightScheme
    input_scale: Tensor | None = None
    group_index: Tensor | None = None
    overall: Tensor | None = None

    @property
    def middle(self) -> int:
        """The zero point of a symmetric scheme."""
        return 1 << (self.scheme.bits - 1)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that the codes stand for, ``[out_features, in_features]``.

        Args:
            dtype: Of the result; the arithmetic is in float32.
        """
        rows, columns = self.codes.shape
        scales = decode_scales(self.scales, self.scheme, self.overall)
        repeats = (
            -(-rows // len(scales)) if self.scheme.block_rows == -1 else self.scheme.block_rows
        )
        scales = scales.repeat_interleave(repeats, 0)[:rows]
        if self.group_index is not None:
            scales = scales[:, self.group_index]
        by_column = self.codes.float().reshape(rows, scales.shape[1], -1)
        if self.scheme.type == "int":
            by_column -= self._zeros()[..., None]
        return (by_column * scales[..., None]).reshape(rows, columns).to(dtype)

    def _zeros(self) -> Tensor:
        if self.zero_points is None:
            return torch.full((1, 1), float(self.middle), device=self.codes.device)
        zeros = self.zero_points.float()
        return zeros if self.group_index is None else zeros[:, self.group_index]

    @property
    def rows_are_free(self) -> bool:
        """Whether each row has scales of its own that can be any number."""
        return self.scheme.scale == "model" and self.scheme.block_rows == 1

    def divide_rows(self, divisors: Tensor) -> QuantizedLinear:
        """The linear whose outputs are divided by positive numbers: its codes stay.

        Args:
            divisors: float32 ``[out_features]``.
        """
        scales = (self.scales.float() / divisors[:, None]).to(self.scales.dtype)
        return replace(self, scales=scales)


def group_count(in_features: int, group_size: int) -> int:
    """Groups in a row of a weight."""
    return 1 if group_size == -1 else in_features // group_size
