"""Outlier suppression: transformations that make a model easier to quantize.

Importing this package registers the suppressors that ship; it imports neither torch nor numpy.
"""

from quantlib.outlier_suppression.base import (
    BaseOutlierSuppressor,
    BlockObserver,
    BlockScales,
    ChannelStatistics,
)
from quantlib.outlier_suppression.registry import (
    OutlierSuppressionRegistry,
    outlier_suppression_registry,
)
from quantlib.outlier_suppression.smooth_quant import SmoothQuantSuppressor

__all__ = [
    "BaseOutlierSuppressor",
    "BlockObserver",
    "BlockScales",
    "ChannelStatistics",
    "OutlierSuppressionRegistry",
    "SmoothQuantSuppressor",
    "outlier_suppression_registry",
]
