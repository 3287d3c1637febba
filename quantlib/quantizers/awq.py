"""AWQ: input channels that matter are scaled up before rounding; ranges of groups are clipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from quantlib.errors import QuantizationError
from quantlib.quantizers.base import BaseQuantizer, GroupInputs, Options, QuantizedGroup
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
class AWQQuantizer(BaseQuantizer):
    """Lin et al. 2023, with scales for each group of columns and errors from the Hessian."""

    options_type: ClassVar[type[Options]] = AWQOptions
    formats: ClassVar[tuple[str, ...]] = ("awq", "compressed-tensors")
    needs_hessian = True
    options: AWQOptions

    def quantize(
        self, weights: Mapping[str, Tensor], inputs: GroupInputs, stored: torch.dtype
    ) -> QuantizedGroup:
        """Quantizes linears that share an input, and scales it where that can be folded."""
        import torch

        from quantlib.quantizers.awq_search import diagonal_blocks, scaled_blocks, search_scales
        from quantlib.quantizers.rounding import round_to_nearest, to_quantized_linears
        from quantlib.quantizers.scales import SHRINKS, searched_scales

        hessian, scheme = inputs.hessian, self.section.weights
        if hessian is None:
            raise ValueError("AWQ needs the Hessian of the input")
        if not hessian.isfinite().all():
            raise QuantizationError(
                " and ".join(weights),
                "the Hessian of the input is not finite: look for calibration text or weights that "
                "make activations overflow",
            )
        weight = torch.cat(list(weights.values()))
        blocks = diagonal_blocks(hessian, scheme)
        shrinks = SHRINKS if self.options.clipping else SHRINKS[:1]
        input_scales = None
        if inputs.fold is not None and self.options.scaling != "none":
            wanted = search_scales(
                weight,
                blocks,
                inputs.fold,
                scheme,
                stored,
                duo=self.options.scaling == "duo",
                shrinks=shrinks[::2],
            )
            input_scales = inputs.fold.effective(wanted)
            weight = weight * input_scales
            blocks = scaled_blocks(blocks, input_scales)
        scales = searched_scales(weight, blocks, scheme, stored, shrinks)
        codes = round_to_nearest(weight, scales, scheme)
        linears = to_quantized_linears(weights, codes, scales, scheme, stored)
        return QuantizedGroup(linears, input_scales)

    @classmethod
    def get_supported_bits(cls) -> tuple[int, ...]:
        """4."""
        return (4,)

    @classmethod
    def get_supported_group_sizes(cls) -> tuple[int, ...]:
        """Those that vLLM has kernels for, apart from one group per output channel."""
        return (32, 64, 128)
