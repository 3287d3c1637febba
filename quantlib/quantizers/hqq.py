"""HQQ: zero points by half-quadratic optimization, without calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from quantlib.quantizers.base import BaseQuantizer, GroupInputs, Options, QuantizedGroup
from quantlib.quantizers.registry import quantizer_registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class HQQOptions(Options):
    """Settings of HQQ."""

    norm: Annotated[
        float,
        Field(
            gt=0,
            le=2,
            description="Exponent of the error that is minimized: the smaller, the more outliers "
            "are forgiven.",
        ),
    ] = 0.7
    iterations: Annotated[
        int, Field(ge=1, le=100, description="Alternations of the half-quadratic solver.")
    ] = 20


@quantizer_registry.register("hqq")
class HQQQuantizer(BaseQuantizer):
    """Badri and Shaji 2023, with whole zero points and rounding that makes up for that."""

    options_type: ClassVar[type[Options]] = HQQOptions
    options: HQQOptions

    def quantize(
        self, weights: Mapping[str, Tensor], inputs: GroupInputs, stored: torch.dtype
    ) -> QuantizedGroup:
        """Rounds each weight, with zero points solved for and errors that sum to nothing."""
        import torch

        from quantlib.quantizers.hqq_solver import half_quadratic_scales, round_balanced
        from quantlib.quantizers.rounding import to_quantized_linears

        scheme, options = self.section.weights, self.options
        weight = torch.cat(list(weights.values()))
        scales = half_quadratic_scales(
            weight, scheme, stored, norm=options.norm, iterations=options.iterations
        )
        codes = round_balanced(weight, scales, scheme)
        return QuantizedGroup(to_quantized_linears(weights, codes, scales, scheme, stored))

    @classmethod
    def get_supported_bits(cls) -> tuple[int, ...]:
        """4 and 8."""
        return (4, 8)

    @classmethod
    def get_supported_group_sizes(cls) -> tuple[int, ...]:
        """Those that vLLM has kernels for."""
        return (-1, 32, 64, 128)
