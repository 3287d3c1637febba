"""Round to nearest, with scales from the extreme weights of each group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from quantlib.quantizers.base import (
    ANY_TYPE,
    GROUP_SIZES,
    BaseQuantizer,
    InputStatistics,
    QuantizedInput,
)
from quantlib.quantizers.registry import quantizer_registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@quantizer_registry.register("minmax")
class MinMaxQuantizer(BaseQuantizer):
    """Needs no calibration: a weight's codes follow from the weight alone."""

    types = ANY_TYPE

    def quantize(
        self, weights: Mapping[str, Tensor], inputs: InputStatistics, stored: torch.dtype
    ) -> QuantizedInput:
        """Rounds each weight to the nearest code."""
        from quantlib.quantizers.rounding import round_within_range

        return QuantizedInput(round_within_range(weights, self.section.weights, stored))

    @classmethod
    def get_supported_bits(cls) -> tuple[int, ...]:
        """2, 4 and 8."""
        return (2, 4, 8)

    @classmethod
    def get_supported_group_sizes(cls) -> tuple[int, ...]:
        """All of them."""
        return GROUP_SIZES
