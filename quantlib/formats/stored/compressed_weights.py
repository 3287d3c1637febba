"""The weights of compressed-tensors that no other format has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantlib.checkpoint.source import FileSource
from quantlib.errors import InvalidInputError
from quantlib.formats.stored.weights import StoredWeight, read_rows, read_whole
from quantlib.schemes import WeightScheme

if TYPE_CHECKING:
    from torch import Tensor

    from quantlib.numbers.quantized import QuantizedLinear


@dataclass(frozen=True)
class IntegerWeight(StoredWeight):
    """Whole numbers, packed or a byte each.

    Parts: ``codes``, ``scales``, and ``zeros``, ``shape`` and ``index`` where there are any.

    Attributes:
        scheme: Bits, group size and symmetry.
        block: Rows and columns that share a scale; None where whole rows or groups of columns do.
        packed: Whether codes are packed into words.
    """

    scheme: WeightScheme
    block: tuple[int, int] | None
    packed: bool

    def pieces(self, source: FileSource, first: int, last: int) -> Iterator[Tensor]:
        """The rows from ``first`` to before ``last``."""
        linears = self._linears(source, self.steps(first, last))
        for linear in linears:
            yield self.finished(linear, linear.scales.dtype)

    def codes(self, source: FileSource) -> QuantizedLinear | None:
        """The whole weight as codes, where they are packed."""
        if self.block is not None or not self.packed:
            return None
        (linear,) = self._linears(source, [(0, self.shape[0])])
        return linear

    def _linears(
        self, source: FileSource, steps: Iterable[tuple[int, int]]
    ) -> Iterator[QuantizedLinear]:
        """Rows of the weight, for each step those from its first to before its last."""
        import torch

        from quantlib.formats.compressed_tensors import CompressedTensorsFormat

        group_index = self._group_index(source)
        self._require_shape(source)
        rows, columns = self.shape
        high = min(self.block[0], rows) if self.block else (rows if self._overall else 1)
        scales = read_whole(source, self.parts["scales"]).reshape(-1, self._groups)
        zeros = self._zero_points(source)
        for start, stop in steps:
            row = torch.arange(start, stop) // high
            parts = {
                "weight_scale": scales[row],
                "weight_packed" if self.packed else "weight": read_rows(
                    source, self.parts["codes"], start, stop
                ),
            }
            if self.packed:
                parts["weight_shape"] = torch.tensor([stop - start, columns])
            if zeros is not None:
                parts["weight_zero_point"] = zeros[row]
            if group_index is not None:
                parts["weight_g_idx"] = group_index
            yield CompressedTensorsFormat().parse(parts, self.scheme, packed_zeros=False)

    @property
    def _overall(self) -> bool:
        """Whether the whole weight has one scale."""
        return self.parts["scales"].elements == 1

    @property
    def _groups(self) -> int:
        """Scales in a row."""
        if self.block is not None:
            return -(-self.columns // self.block[1])
        return 1 if self.scheme.group_size == -1 else self.columns // self.scheme.group_size

    def _zero_points(self, source: FileSource) -> Tensor | None:
        """Signed zero points, ``[rows of scales, groups]``."""
        import torch

        from quantlib.formats.packing import unpack_int32

        if "zeros" not in self.parts:
            return None
        zeros = read_whole(source, self.parts["zeros"])
        if zeros.dtype == torch.int32:
            bits, rows = self.scheme.bits, self.shape[0]
            unpacked = unpack_int32(zeros.t(), bits, rows).t().to(torch.int16)
            return unpacked - (1 << (bits - 1))
        return zeros.reshape(-1, self._groups)

    def _group_index(self, source: FileSource) -> Tensor | None:
        """The group of each column; None where groups are consecutive.

        Raises:
            InvalidInputError: Not every group has as many columns.
        """
        import torch

        if self.block is not None:
            return torch.arange(self.columns) // min(self.block[1], self.columns)
        if "index" not in self.parts:
            return None
        info, size = self.parts["index"], self.scheme.group_size
        index = read_whole(source, info).long()
        if bool((index == -1).any()):
            return None  # as the package has it: not set
        # Sorted, a group's columns stand together, if there are as many as should be.
        expected = torch.arange(self.columns) // size
        if not torch.equal(index.sort().values, expected):
            raise InvalidInputError.one(
                info.name, f"does not give each of {self._groups} groups {size} columns"
            )
        return index

    def _require_shape(self, source: FileSource) -> None:
        """Compares the shape that is stored with that of the codes.

        Raises:
            InvalidInputError: They differ.
        """
        if (info := self.parts.get("shape")) is None:
            return
        stated = read_whole(source, info).tolist()
        if stated != list(self.shape):
            raise InvalidInputError.one(
                info.name, f"says {stated}, but the codes are those of {list(self.shape)}"
            )


@dataclass(frozen=True)
class Fp4Weight(StoredWeight):
    """FP4 with a scale for each group of columns: NVFP4 and MXFP4.

    Parts: ``codes``, ``scales``, and for NVFP4 ``whole``, by which scales are divided.
    """

    def pieces(self, source: FileSource, first: int, last: int) -> Iterator[Tensor]:
        """The rows from ``first`` to before ``last``."""
        import torch

        from quantlib.formats.packing import unpack_e2m1
        from quantlib.formats.stored.fp8 import multipliers
        from quantlib.numbers.quantized import QuantizedLinear

        groups = self.parts["scales"].shape[1]
        scheme = WeightScheme(type="float", bits=4, group_size=self.columns // groups)
        whole = None
        if "whole" in self.parts:
            whole = read_whole(source, self.parts["whole"])
        for start, stop in self.steps(first, last):
            info = self.parts["scales"]
            scales = multipliers(info, read_rows(source, info, start, stop))
            scales = scales.to(torch.bfloat16)  # as the package has them, before it divides
            if whole is not None:
                scales = scales / whole
            codes = unpack_e2m1(read_rows(source, self.parts["codes"], start, stop))
            linear = QuantizedLinear(codes, scales, None, scheme)
            yield self.finished(linear, torch.bfloat16)
