"""GPTQ: columns are rounded one by one, and later columns make up for the error of earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from quantlib.quantizers.base import (
    ANY_TYPE,
    GROUP_SIZES,
    BatchQuantizer,
    InputStatistics,
    Options,
    QuantizedInput,
    hessians_of,
    not_finite,
)
from quantlib.quantizers.registry import quantizer_registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quantlib.quantizers.scales import GroupScales


class GPTQOptions(Options):
    """Settings of GPTQ."""

    scale_search: Annotated[
        Literal["importance", "mse", "minmax"],
        Field(
            description="importance: of 13 shrunken ranges per group, the one with the least error "
            "weighted by the Hessian's diagonal. mse: the same, not weighted. minmax: the group's "
            "extreme weights."
        ),
    ] = "importance"
    act_order: Annotated[
        Literal["static", "none"],
        Field(
            description="static: round columns in order of importance, within groups that stay "
            "consecutive. none: left to right. group is refused: vLLM serves no such checkpoint."
        ),
    ] = "static"
    damping: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Share of the Hessian's mean diagonal that is added to it; raised tenfold "
            "where the factorization fails, and reported.",
        ),
    ] = 0.1

    @field_validator("act_order", mode="before")
    @classmethod
    def _no_group_index(cls, value: object) -> object:
        # vLLM 0.32: compressed_tensors.py refuses actorder group and dynamic, gptq_utils.py
        # refuses desc_act, and base_config.py drops g_idx, after which answers would be garbage.
        if value == "group":
            raise ValueError(
                "group sorts columns into groups, which needs a group index (g_idx) that vLLM no "
                "longer reads: it refuses desc_act and actorder group; static keeps the order of "
                "importance without one"
            )
        return value


@quantizer_registry.register("gptq")
class GPTQQuantizer(BatchQuantizer):
    """Frantar et al. 2023, with static groups and a scale search."""

    options_type: ClassVar[type[Options]] = GPTQOptions
    types = ANY_TYPE
    needs_hessian = True
    options: GPTQOptions

    def quantize_batch(
        self,
        weights: Sequence[Mapping[str, Tensor]],
        inputs: Sequence[InputStatistics],
        stored: torch.dtype,
    ) -> list[QuantizedInput]:
        """Quantizes linears by shared input, with one factorization of each Hessian."""
        import torch

        from quantlib.numbers.grid import grid_of
        from quantlib.quantizers.gptq_solver import (
            NotPositiveDefiniteError,
            factorize,
            round_columns,
        )
        from quantlib.quantizers.rounding import rows_of, stacked, to_quantized_linears

        hessians = hessians_of(inputs, "GPTQ")
        try:
            factor = factorize(hessians, self.options.damping, self.options.act_order == "static")
        except NotPositiveDefiniteError as error:
            raise not_finite(weights[error.matrix]) from None
        scheme = self.section.weights
        whole = stacked(weights)
        importance = torch.stack([hessian.diagonal() for hessian in hessians])
        scales = self._scales(whole, rows_of(weights), importance, stored)
        grid = grid_of(scheme)
        values = round_columns(whole, factor, scales.scales, scales.zero_points, grid)
        linears = to_quantized_linears(weights, values, scales, scheme, stored)
        return [
            QuantizedInput(of_input, damping=damping, damping_attempts=attempts)
            for of_input, damping, attempts in zip(
                linears, factor.damping, factor.attempts, strict=True
            )
        ]

    def _scales(
        self, weights: Tensor, rows: Sequence[int], importance: Tensor, stored: torch.dtype
    ) -> GroupScales:
        from quantlib.numbers.grid import range_factors
        from quantlib.quantizers.scales import range_scales, searched_scales

        scheme = self.section.weights
        if self.options.scale_search == "minmax":
            return range_scales(weights, rows, scheme, stored)
        if self.options.scale_search == "mse":
            importance = importance.new_ones(importance.shape)
        factors = range_factors(scheme)
        return searched_scales(weights, rows, importance, scheme, stored, factors)[0]

    @classmethod
    def get_supported_bits(cls) -> tuple[int, ...]:
        """2, 4 and 8."""
        return (2, 4, 8)

    @classmethod
    def get_supported_group_sizes(cls) -> tuple[int, ...]:
        """All of them."""
        return GROUP_SIZES
