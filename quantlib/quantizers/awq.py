"""AWQ: input channels that matter are scaled up before rounding; ranges of groups are clipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

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


class AWQOptions(Options):
    """Settings of AWQ."""

    scaling: Annotated[
        Literal["duo", "activations", "none"],
        Field(
            description="What the scale of an input channel follows. duo: the magnitudes of its "
            "activations and of its weights. activations: the former alone. none: 1 everywhere."
        ),
    ] = "duo"
    clipping: Annotated[
        bool,
        Field(
            description="true: of 13 shrunken ranges per group of weights, the one with the least "
            "output error. false: the group's extreme weights."
        ),
    ] = True


@quantizer_registry.register("awq")
class AWQQuantizer(BatchQuantizer):
    """Lin et al. 2023, with scales for each group of columns and errors from the Hessian."""

    options_type: ClassVar[type[Options]] = AWQOptions
    types = ANY_TYPE
    needs_hessian = True
    options: AWQOptions

    def quantize_batch(
        self,
        weights: Sequence[Mapping[str, Tensor]],
        inputs: Sequence[InputStatistics],
        stored: torch.dtype,
    ) -> list[QuantizedInput]:
        """Quantizes linears by shared input, and scales inputs where that can be folded."""
        import torch

        from quantlib.numbers.grid import range_factors
        from quantlib.quantizers.awq_search import diagonal_blocks, scaled_blocks, search_scales
        from quantlib.quantizers.rounding import (
            round_to_nearest,
            rows_of,
            stacked,
            to_quantized_linears,
        )
        from quantlib.quantizers.scales import searched_scales

        scheme = self.section.weights
        hessians = hessians_of(inputs, "AWQ")
        for names, hessian in zip(weights, hessians, strict=True):
            if not hessian.isfinite().all():
                raise not_finite(names)
        whole = stacked(weights)
        blocks = diagonal_blocks(hessians, scheme)
        factors = range_factors(scheme)[: None if self.options.clipping else 1]
        input_scales: Sequence[Tensor | None] = [None] * len(inputs)
        folds = [known.fold for known in inputs if known.fold is not None]
        if folds and self.options.scaling != "none":
            wanted = search_scales(
                whole,
                blocks,
                folds[0],
                scheme,
                stored,
                duo=self.options.scaling == "duo",
                factors=factors[::2],
            )
            every = [each.effective(own) for each, own in zip(folds, wanted, strict=True)]
            input_scales, effective = every, torch.stack(every)
            whole = whole * effective[:, None]
            blocks = scaled_blocks(blocks, effective)
        rows = rows_of(weights)
        scales, _ = searched_scales(whole, rows, blocks, scheme, stored, factors)
        values = round_to_nearest(whole, scales, scheme)
        linears = to_quantized_linears(weights, values, scales, scheme, stored)
        return list(map(QuantizedInput, linears, input_scales))

    @classmethod
    def get_supported_bits(cls) -> tuple[int, ...]:
        """4."""
        return (4,)

    @classmethod
    def get_supported_group_sizes(cls) -> tuple[int, ...]:
        """All of them, apart from one group per output channel."""
        return GROUP_SIZES[1:]
