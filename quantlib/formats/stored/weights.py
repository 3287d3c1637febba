"""Weights that lie quantized in a checkpoint, and the rows of them that somebody wants.

What is common to the formats; what their tensors mean is in a module for each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantlib.checkpoint.header import TensorInfo
from quantlib.checkpoint.source import FileSource

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quantlib.numbers.quantized import QuantizedLinear

_PIECE_ELEMENTS = 1 << 22
"""Numbers that are computed at a time: the arithmetic is in float32, which takes more room."""

ROW_STEP = 32
"""Pieces begin at multiples of so many rows, so that no word with codes of several is cut."""


@dataclass(frozen=True)
class StoredWeight(ABC):
    """A weight by the name, shape and dtype that it has when it is dequantized.

    Attributes:
        name: Of the weight: ``model.layers.0.mlp.up_proj.weight``.
        shape: ``(out_features, in_features)``, before them what is stacked.
        dtype: Of the dequantized weight, as safetensors writes it.
        parts: The tensors that it lies in, by what they are to the format.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    parts: Mapping[str, TensorInfo]

    @property
    def columns(self) -> int:
        """Numbers in a row."""
        return self.shape[-1]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype, as torch has it."""
        from quantlib.checkpoint.tensors import TORCH_DTYPES

        return TORCH_DTYPES[self.dtype]

    @abstractmethod
    def pieces(self, source: FileSource, first: int, last: int) -> Iterator[Tensor]:
        """The rows from ``first`` to before ``last``, some ``[rows, columns]`` after the other."""

    def codes(self, source: FileSource) -> QuantizedLinear | None:
        """The whole weight as codes; None where they are none that other formats hold, too.

        Raises:
            InvalidInputError: What lies there does not fit its headers.
        """
        return None

    def steps(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Cuts the rows from ``first`` to before ``last`` into pieces."""
        most = max(ROW_STEP, _PIECE_ELEMENTS // self.columns // ROW_STEP * ROW_STEP)
        while first < last:
            stop = min(last, (first // most + 1) * most)
            yield first, stop
            first = stop

    def finished(self, linear: QuantizedLinear, rounded: torch.dtype | None) -> Tensor:
        """What codes stand for, in the weight's dtype.

        Args:
            linear: Some rows.
            rounded: The dtype that the format's own library computes in, to which its products are
                rounded first; None where it rounds to the weight's at once.
        """
        if rounded is None:
            return linear.dequantize(self.torch_dtype)
        return linear.dequantize(rounded).to(self.torch_dtype)


def read_whole(source: FileSource, info: TensorInfo) -> Tensor:
    """A tensor as it is stored, on the CPU."""
    import torch

    from quantlib.checkpoint.tensors import TORCH_DTYPES

    data = source.read(info.file, info.start, info.bytes)
    return torch.frombuffer(data, dtype=TORCH_DTYPES[info.dtype]).reshape(info.shape)


def read_rows(source: FileSource, info: TensorInfo, first: int, last: int) -> Tensor:
    """Rows of a tensor as it is stored, ``[rows, columns]``; all but the last dimension is rows."""
    columns = info.shape[-1]
    part = info.part(info.name, first * columns, (last - first, columns))
    return read_whole(source, part)
