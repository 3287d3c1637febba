"""SmoothQuant: moves the difficulty of outlier channels from activations to weights.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", 2023, equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from quantlib.outlier_suppression.base import BaseOutlierSuppressor, ChannelStatistics, Options
from quantlib.outlier_suppression.registry import outlier_suppression_registry

if TYPE_CHECKING:
    import numpy as np
    import torch

    from quantlib.models.decoder import DecoderBlock

_SMALLEST = 1e-5


class SmoothQuantOptions(Options):
    """Settings of SmoothQuant."""

    alpha: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Migration strength: 0 leaves activations as they are, 1 moves all of "
            "their spread into the weights.",
        ),
    ] = 0.8


@outlier_suppression_registry.register("smooth_quant")
class SmoothQuantSuppressor(BaseOutlierSuppressor):
    """Divides a norm's weight by a scale per channel, and multiplies the linears behind it."""

    options_type: ClassVar[type[Options]] = SmoothQuantOptions
    options: SmoothQuantOptions

    def scales(self, statistics: ChannelStatistics) -> np.ndarray:
        """``max|X| ** alpha / max|W| ** (1 - alpha)``, per channel."""
        import numpy as np

        inputs = np.maximum(statistics.input_absmax.astype(np.float64), _SMALLEST)
        weights = np.maximum(statistics.weight_absmax.astype(np.float64), _SMALLEST)
        alpha = self.options.alpha
        scales = inputs**alpha / weights ** (1 - alpha)
        return np.maximum(scales, _SMALLEST).astype(np.float32)

    def apply(
        self, block: DecoderBlock, scales: Mapping[str, torch.Tensor], stored: torch.dtype
    ) -> dict[str, torch.Tensor]:
        """Folds scales into a block's norms and the linears behind them."""
        from quantlib.models.folding import Fold

        changed: dict[str, torch.Tensor] = {}
        for group in block.groups:
            if group.name not in scales or group.producer is None:
                continue
            scale = scales[group.name].to(block.rotary.frequencies.device)
            fold = Fold.of(block, group.producer, len(scale), stored)
            effective = fold.effective(scale)
            folded = fold.tensors(scale)
            for linear in group.linears:
                # float32: rounding here would add to the error of quantizing.
                weight = block.tensors[f"{linear}.weight"]
                block.tensors[f"{linear}.weight"] = weight * effective
            block.tensors |= folded
            changed |= folded
        return changed
