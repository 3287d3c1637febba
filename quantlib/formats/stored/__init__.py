"""Quantized checkpoints of others, read as the plain ones that they stand for.

Importing this package does not import torch.
"""

from quantlib.formats.stored.reading import READERS, described, plain, plain_dtype, stored

__all__ = ["READERS", "described", "plain", "plain_dtype", "stored"]
