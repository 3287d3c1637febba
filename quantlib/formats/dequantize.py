"""A quantized checkpoint as the floating-point model that it stands for."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.tensors import read_tensor
from quantlib.formats.stored import plain


def dequantized_state(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the model, one after the other.

    Args:
        checkpoint: One in a format that is read, or one that is not quantized at all.

    Yields:
        Names as in the original checkpoint, and tensors.

    Raises:
        InvalidInputError: The checkpoint is quantized in a way that is not read.
    """
    read = plain(checkpoint)
    for name in read.tensors:
        yield name, read_tensor(read, name)
