"""HQQ: scales and zero points by half-quadratic optimization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from quantlib.quantization import QuantizationSection
from quantlib.quantizers.base import (
    ANY_TYPE,
    GROUP_SIZES,
    BatchQuantizer,
    InputStatistics,
    Options,
    QuantizedInput,
)
from quantlib.quantizers.registry import quantizer_registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_FACTORS = (1.0, 0.9, 0.8, 0.7, 0.6)
"""Factors on a group's range that the optimization starts from."""


class HQQOptions(Options):
    """Settings of HQQ."""

    importance: Annotated[
        Literal["hessian", "none"],
        Field(
            description="hessian: errors are weighted by the Hessian's diagonal. none: every "
            "weight alike, as the paper has it; no calibration text is read."
        ),
    ] = "hessian"
    norm: Annotated[
        float,
        Field(
            gt=0,
            le=2,
            description="Exponent of the error that is minimized: the smaller, the more outliers "
            "are forgiven. The paper has 0.7; with whole zero points, 2 measured best.",
        ),
    ] = 2.0
    iterations: Annotated[
        int, Field(ge=1, le=100, description="Alternations from each of five starts.")
    ] = 10


@quantizer_registry.register("hqq")
class HQQQuantizer(BatchQuantizer):
    """Badri and Shaji 2023, with whole zero points, scales solved for, and importance."""

    options_type: ClassVar[type[Options]] = HQQOptions
    types = ANY_TYPE
    options: HQQOptions

    def __init__(self, section: QuantizationSection) -> None:
        super().__init__(section)
        self.needs_hessian = self.options.importance == "hessian"

    def quantize_batch(
        self,
        weights: Sequence[Mapping[str, Tensor]],
        inputs: Sequence[InputStatistics],
        stored: torch.dtype,
    ) -> list[QuantizedInput]:
        """Rounds each weight to the nearest code of its optimized groups."""
        import torch

        from quantlib.quantizers.hqq_solver import half_quadratic_scales
        from quantlib.quantizers.rounding import (
            round_to_nearest,
            rows_of,
            stacked,
            to_quantized_linears,
        )

        scheme = self.section.weights
        whole = stacked(weights)
        ones = whole.new_ones(whole.shape[2])
        hessians = [each.hessian for each in inputs]
        importance = [ones if hessian is None else hessian.diagonal() for hessian in hessians]
        scales = half_quadratic_scales(
            whole,
            rows_of(weights),
            torch.stack(importance),
            scheme,
            stored,
            norm=self.options.norm,
            iterations=self.options.iterations,
            factors=_FACTORS,
        )
        values = round_to_nearest(whole, scales, scheme)
        linears = to_quantized_linears(weights, values, scales, scheme, stored)
        return list(map(QuantizedInput, linears))

    @classmethod
    def get_supported_bits(cls) -> tuple[int, ...]:
        """4 and 8."""
        return (4, 8)

    @classmethod
    def get_supported_group_sizes(cls) -> tuple[int, ...]:
        """All of them."""
        return GROUP_SIZES
