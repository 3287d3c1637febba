"""The value in which quantizers, formats and adapters meet."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantlib.recipe import WeightScheme


@dataclass(frozen=True)
class QuantizedLinear:
    """A linear's weight as codes.

    A weight is ``(code - zero_point) * scale``, and ``code * scale`` for codes that are floating
    point numbers. Groups are consecutive columns in all that is written: no format that vLLM serves
    carries another assignment. Some checkpoints that are read have one.

    Attributes:
        codes: uint8 ``[out_features, in_features]``, each below ``2 ** bits``; floating point
            numbers, float8_e4m3fn or what FP4 stands for, for a scheme of type float.
        scales: ``[out_features, groups]``, in the dtype in which they are stored.
        zero_points: uint8 or int16 ``[out_features, groups]``; None for a symmetric scheme, whose
            zero point is ``2 ** (bits - 1)`` everywhere.
        scheme: Type, bits, group size and symmetry.
        input_scale: float32 ``[1]``, the step to which inputs are rounded; None where activations
            are not quantized, or by a dynamic scale.
        group_index: int64 ``[in_features]``, the group of each column; None where groups are
            consecutive columns, as many in each.
    """

    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None
    scheme: WeightScheme
    input_scale: Tensor | None = None
    group_index: Tensor | None = None

    @property
    def middle(self) -> int:
        """The zero point of a symmetric scheme."""
        return 1 << (self.scheme.bits - 1)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that the codes stand for, ``[out_features, in_features]``.

        Args:
            dtype: Of the result; the arithmetic is in float32.
        """
        if self.group_index is not None:
            return self._dequantize_by_index(self.group_index).to(dtype)
        rows, columns = self.codes.shape
        groups = self.scales.shape[1]
        codes = self.codes.float().reshape(rows, groups, columns // groups)
        if self.scheme.type == "float":
            return (codes * self.scales.float()[..., None]).reshape(rows, columns).to(dtype)
        zeros = self.middle if self.zero_points is None else self.zero_points.float()[..., None]
        return ((codes - zeros) * self.scales.float()[..., None]).reshape(rows, columns).to(dtype)

    def _dequantize_by_index(self, group_index: Tensor) -> Tensor:
        scales = self.scales.float()[:, group_index]
        if self.scheme.type == "float":
            return self.codes.float() * scales
        zeros: Tensor | int = self.middle
        if self.zero_points is not None:
            zeros = self.zero_points.float()[:, group_index]
        return (self.codes.float() - zeros) * scales

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
