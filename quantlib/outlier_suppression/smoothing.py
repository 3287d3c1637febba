"""The scales of SmoothQuant; imports neither torch nor numpy before they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantlib.outlier_suppression.base import ChannelStatistics

if TYPE_CHECKING:
    import numpy as np

SAMPLE_TOKENS = 512
"""Tokens that strengths of smoothing are tried on: at most, and at most a quarter of all."""

_SMALLEST = 1e-5


def smoothing_scales(statistics: ChannelStatistics, alpha: float) -> np.ndarray:
    """``max|X| ** alpha / max|W| ** (1 - alpha)``, per channel; float32 ``[in_features]``."""
    import numpy as np

    inputs = np.maximum(statistics.input_absmax.astype(np.float64), _SMALLEST)
    weights = np.maximum(statistics.weight_absmax.astype(np.float64), _SMALLEST)
    scales = inputs**alpha / weights ** (1 - alpha)
    return np.maximum(scales, _SMALLEST).astype(np.float32)
