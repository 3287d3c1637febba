"""Quantizers: from a weight and what is known of its input to integer codes.

Importing this package registers the quantizers that ship; it does not import torch.
"""

from quantlib.quantizers.awq import AWQQuantizer
from quantlib.quantizers.base import BaseQuantizer, BatchQuantizer, InputStatistics, QuantizedInput
from quantlib.quantizers.gptq import GPTQQuantizer
from quantlib.quantizers.hqq import HQQQuantizer
from quantlib.quantizers.minmax import MinMaxQuantizer
from quantlib.quantizers.registry import QuantizerRegistry, quantizer_registry

__all__ = [
    "AWQQuantizer",
    "BaseQuantizer",
    "BatchQuantizer",
    "GPTQQuantizer",
    "HQQQuantizer",
    "InputStatistics",
    "MinMaxQuantizer",
    "QuantizedInput",
    "QuantizerRegistry",
    "quantizer_registry",
]
