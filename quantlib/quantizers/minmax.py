"""Round to nearest, with scales from the extreme weights of each group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from quantlib.quantizers.base import BaseQuantizer, InputStatistics, QuantizedInput
from quantlib.quantizers.registry import quantizer_registry
from quantlib.recipe import WeightType

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@quantizer_registry.register("minmax")
class MinMaxQuantizer(BaseQuantizer):
    """Needs no calibration: a weight's codes follow from the weight alone."""

    types: ClassVar[tuple[WeightType, ...]] = ("int", "float")

    def quantize(
        self, weights: Mapping[str, Tensor], inputs: InputStatistics, stored: torch.dtype
    ) -> QuantizedInput:
        """Rounds each weight to the nearest code."""
        from quantlib.quantizers.rounding import (
            round_to_float8,
            round_to_nearest,
            to_quantized_linear,
        )
        from quantlib.quantizers.scales import range_scales

        if self.section.weights.type == "float":
            return QuantizedInput(
                {
                    name: round_to_float8(weight, self.section.weights, stored)
                    for name, weight in weights.items()
                }
            )
        linears = {}
        for name, weight in weights.items():
            scales = range_scales(weight, self.section.weights, stored)
            codes = round_to_nearest(weight, scales, self.section.weights)
            linears[name] = to_quantized_linear(codes, scales, self.section.weights, stored)
        return QuantizedInput(linears)

    @classmethod
    def get_supported_bits(cls) -> tuple[int, ...]:
        """4 and 8."""
        return (4, 8)

    @classmethod
    def get_supported_group_sizes(cls) -> tuple[int, ...]:
        """Those that vLLM has kernels for."""
        return (-1, 32, 64, 128)
