"""SmoothQuant: moves the difficulty of outlier channels from activations to weights.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", 2023, equation 4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from quantlib.errors import Problem
from quantlib.models import BaseModelAdapter
from quantlib.models.layout import SharedInput
from quantlib.outlier_suppression.base import (
    BaseOutlierSuppressor,
    BlockObserver,
    BlockScales,
    ChannelStatistics,
    Options,
)
from quantlib.outlier_suppression.registry import outlier_suppression_registry
from quantlib.outlier_suppression.smoothing import smoothing_scales
from quantlib.quantization import QuantizationSection
from quantlib.schemes import LinearScheme

if TYPE_CHECKING:
    import numpy as np

    from quantlib.models.streamed import Block

CANDIDATES = (0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""The alphas among which ``auto`` chooses."""

_ATTENTION = re.compile(r"attn|attention|mixer|mamba|conv")
"""In the name of a module: it mixes tokens."""

Pair = Literal["norms", "value_output", "up_down"]
Alpha = Annotated[float, Field(ge=0, le=1, strict=True)]


class SmoothQuantOptions(Options):
    """Settings of SmoothQuant."""

    alpha: Annotated[
        Alpha | Literal["auto"] | tuple[Alpha, ...],
        Field(
            description="Migration strength: 0 leaves activations as they are, 1 moves all of "
            "their spread into the weights. A number for all blocks, a list with one number per "
            "block, or auto: for each block the one with the least output error on calibration "
            "tokens."
        ),
    ] = 0.8
    pairs: Annotated[
        tuple[Pair, ...],
        Field(
            description="What scales are folded into. norms: the norms before q, k and v and "
            "before gate and up. value_output: v, for the input of o. up_down: up, for the input "
            "of down.",
        ),
    ] = ("norms",)

    @field_validator("alpha", mode="wrap")
    @classmethod
    def _one_message(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(
                "must be a number from 0 to 1, a list of such numbers, one per block, or auto"
            ) from None

    @field_validator("pairs")
    @classmethod
    def _not_empty(cls, value: tuple[Pair, ...]) -> tuple[Pair, ...]:
        if not value:
            raise ValueError("names none; leave it out for norms")
        return value


_DECIDING = {"weights", "activations", "schemes", "layers", "ignore"}
"""What of a recipe decides how each linear is represented."""


def pair_of(shared: SharedInput) -> Pair | None:
    """Which of the pairs an input and what gives it are; None where nothing can be folded."""
    if shared.producer is None:
        return None
    if shared.producer.norm:
        return "norms"
    inner = shared.producer.name.rpartition(".")[0]
    return "value_output" if _ATTENTION.search(inner) else "up_down"


@outlier_suppression_registry.register("smooth_quant")
class SmoothQuantSuppressor(BaseOutlierSuppressor):
    """Divides what gives an input by a scale per channel, and multiplies the linears behind it."""

    options_type: ClassVar[type[Options]] = SmoothQuantOptions
    options: SmoothQuantOptions

    def problems(self, adapter: BaseModelAdapter) -> list[Problem]:
        """Pairs that the model has none of, and a list of alphas that is not one per block."""
        problems = super().problems(adapter)
        alpha = self.options.alpha
        if not isinstance(alpha, tuple) or len(alpha) == adapter.blocks:
            return problems
        return [
            *problems,
            Problem(
                "outlier_suppression.options.alpha",
                f"lists {len(alpha)} numbers; the model has {adapter.blocks} blocks",
                "give one per block, one number for all of them, or auto",
            ),
        ]

    def statistics_key(self, section: QuantizationSection) -> dict[str, Any]:
        """Only ``auto`` measures errors, which depend on what weights and inputs are rounded to."""
        if self.options.alpha != "auto":
            return {}
        return {
            "alphas": list(CANDIDATES),
            "pairs": sorted(set(self.options.pairs)),
            **section.model_dump(mode="json", include=_DECIDING),
        }

    def observer(
        self, block: Block, tokens: int, schemes: Mapping[str, LinearScheme]
    ) -> BlockObserver:
        """The extremes of each channel; for ``auto`` also the error of every candidate."""
        if self.options.alpha != "auto":
            return super().observer(block, tokens, schemes)
        from quantlib.outlier_suppression.alpha_errors import AlphaErrors

        inputs = [shared for shared in block.inputs if self.scaled(shared)]
        return AlphaErrors(block, inputs, tokens, CANDIDATES, schemes)

    def scaled(self, shared: SharedInput) -> bool:
        """Whether the recipe names the pair that the input belongs to."""
        return pair_of(shared) in self.options.pairs

    def scales(
        self, block: int, inputs: Sequence[SharedInput], statistics: Mapping[str, np.ndarray]
    ) -> BlockScales:
        """Equation 4, with the block's alpha."""
        import numpy as np

        alpha = self.options.alpha
        if alpha == "auto":
            errors = np.sum(
                [statistics[f"{shared.name}.alpha_errors"] for shared in inputs], axis=0
            )
            alpha = CANDIDATES[int(errors.argmin())]
        elif isinstance(alpha, tuple):
            alpha = alpha[block]
        return BlockScales(
            {
                shared.name: smoothing_scales(ChannelStatistics.of(shared, statistics), alpha)
                for shared in inputs
            },
            alpha,
        )
