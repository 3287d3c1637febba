"""Checkpoint formats: from a quantized linear to named tensors and a quantization_config.

Importing this package registers the formats that ship; it does not import torch.
"""

from quantlib.formats.awq import AWQFormat
from quantlib.formats.base import BaseFormat, CheckpointScheme
from quantlib.formats.compressed_tensors import CompressedTensorsFormat
from quantlib.formats.gptq import GPTQFormat
from quantlib.formats.registry import FormatRegistry, format_registry

__all__ = [
    "AWQFormat",
    "BaseFormat",
    "CheckpointScheme",
    "CompressedTensorsFormat",
    "FormatRegistry",
    "GPTQFormat",
    "format_registry",
]
