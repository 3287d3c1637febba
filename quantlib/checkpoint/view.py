"""Tensors that are computed while they are read, in a file that is not there.

A quantized checkpoint is read as the plain one that it stands for: each dequantized weight lies, by
its own name, shape and dtype, in one file more than the source has, and reading a range of that
file computes the rows that the range touches, and no others. Whoever reads by name and byte range
need not know of it: ranges of blocks, experts in one tensor, the renaming of tensors.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from quantlib.checkpoint.header import DTYPE_BYTES, TensorInfo
from quantlib.checkpoint.source import FileSource

if TYPE_CHECKING:
    from torch import Tensor

VIEW_NAME = "dequantized"
"""The file that is not there; no file of weights can be called so."""


class ComputedTensor(Protocol):
    """A tensor that is computed from ranges of files."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape: two dimensions or more, and none of them empty."""

    @property
    def dtype(self) -> str:
        """Its dtype, as safetensors writes it."""

    def pieces(self, source: FileSource, first: int, last: int) -> Iterator[Tensor]:
        """Some of its rows, in pieces that are computed one after the other.

        Args:
            source: The files.
            first: The first row, all dimensions but the last counted as rows.
            last: The row behind the last.

        Yields:
            ``[rows, columns]``, in its dtype, on the CPU.

        Raises:
            InvalidInputError: What the files hold is no such tensor.
            StoreError: They cannot be read.
        """


class ViewSource:
    """The files of a source, and one more with computed tensors.

    Attributes:
        tensors: Where each computed tensor lies, by its name.
    """

    def __init__(self, source: FileSource, computed: Sequence[ComputedTensor]) -> None:
        self._source = source
        self._computed = computed
        self._infos: list[TensorInfo] = []
        position = 0
        for tensor in computed:
            info = TensorInfo(tensor.name, tensor.dtype, tensor.shape, VIEW_NAME, position, 0)
            position += info.elements * DTYPE_BYTES[info.dtype]
            self._infos.append(
                TensorInfo(info.name, info.dtype, info.shape, VIEW_NAME, info.start, position)
            )
        self._starts = [info.start for info in self._infos]
        self._bytes = position
        self.tensors = {info.name: info for info in self._infos}

    def names(self) -> tuple[str, ...]:
        """The files that are there."""
        return self._source.names()

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self._bytes if name == VIEW_NAME else self._source.size(name)

    def describe(self, name: str) -> str:
        """The file's address, for messages."""
        return self._source.describe(name)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytearray:
        """``length`` bytes from ``offset``, computed where they are not there.

        Raises:
            InvalidInputError: What the files hold is not the tensor that their headers promise.
            StoreError: They cannot be read.
        """
        if name != VIEW_NAME:
            return self._source.read(name, offset, length)
        end = self._bytes if length is None else min(offset + length, self._bytes)
        data = bytearray(max(0, end - offset))
        at = bisect_right(self._starts, offset) - 1
        while offset < end:
            info = self._infos[at]
            stop = min(end, info.end)
            target = memoryview(data)[len(data) - (end - offset) : len(data) - (end - stop)]
            self._fill(target, self._computed[at], offset - info.start)
            offset, at = stop, at + 1
        return data

    def _fill(self, target: memoryview, tensor: ComputedTensor, start: int) -> None:
        """Fills ``target`` with a tensor's bytes from ``start``."""
        import torch

        row = tensor.shape[-1] * DTYPE_BYTES[tensor.dtype]
        first, last = start // row, -(-(start + len(target)) // row)
        position = first * row - start
        for piece in tensor.pieces(self._source, first, last):
            data = piece.contiguous().flatten().view(torch.uint8).numpy().data
            before, beyond = max(0, -position), max(0, position + len(data) - len(target))
            target[position + before : position + len(data) - beyond] = data[
                before : len(data) - beyond
            ]
            position += len(data)
