"""The header of a safetensors file, read without trusting it.

The format is eight bytes of header length (little-endian), that many bytes of JSON, then the data:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantlib.checkpoint.source import FileSource
from quantlib.errors import InvalidInputError, Problem, StoreError
from quantlib.runtime.foreign_json import parse_mapping

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
"""Bytes of an element, by the name that safetensors gives its dtype."""

REFETCH = "fetch the model again"
"""What helps against a damaged file."""

MAX_HEADER_BYTES = 100_000_000
"""The limit that the format's own reader sets."""

_SMALL_BYTES = 1 << 20
_BYTES_PER_BRACKET = 12
"""An entry has three brackets and at least 50 bytes. A long header with more of them is a trap: as
Python's values it would take twenty times its size."""

_MAX_DIMENSIONS = 64
_MAX_OFFSET = 1 << 63
_SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        name: Its name.
        dtype: Its dtype as safetensors writes it: ``BF16``.
        shape: Its shape.
        file: The file that it lies in.
        start: Offset of its first byte in the file.
        end: Offset behind its last byte in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int

    @property
    def bytes(self) -> int:
        """Bytes of the tensor."""
        return self.end - self.start

    @property
    def elements(self) -> int:
        """Numbers in the tensor."""
        return math.prod(self.shape)

    def part(self, name: str, first: int, shape: tuple[int, ...]) -> TensorInfo:
        """Consecutive elements of the tensor as a tensor of their own.

        Args:
            name: What to call it.
            first: How many elements lie before it.
            shape: Its shape.
        """
        size = DTYPE_BYTES[self.dtype]
        start = self.start + first * size
        end = start + math.prod(shape) * size
        if end > self.end:
            raise ValueError(f"{name}: {list(shape)} reaches beyond the end of {self.name}")
        return TensorInfo(name, self.dtype, shape, self.file, start, end)

    def parts(self, names: Sequence[str]) -> list[TensorInfo]:
        """The tensor by another name, or cut into equal matrices that lie one after the other.

        Args:
            names: What to call it, or each of them.
        """
        if len(names) == 1:
            return [self.part(names[0], 0, self.shape)]
        rows = math.prod(self.shape[:-1]) // len(names)
        shape = (rows, self.shape[-1])
        return [
            self.part(name, number * math.prod(shape), shape) for number, name in enumerate(names)
        ]


def read_header(source: FileSource, name: str) -> dict[str, TensorInfo]:
    """Reads and checks the header of one safetensors file.

    Args:
        source: Where the file is.
        name: The file.

    Returns:
        The file's tensors by name, in the order of their bytes.

    Raises:
        InvalidInputError: The file is truncated, is no safetensors file, or its header names bytes
            that overlap, leave a gap or lie outside the file.
    """
    where = source.describe(name)
    try:
        size = source.size(name)
        if size < 8:
            raise InvalidInputError.one(where, f"holds {size} bytes: truncated", REFETCH)
        length = int.from_bytes(source.read(name, 0, 8), "little")
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise InvalidInputError.one(
                where,
                f"its header should be {length} bytes long but the file has {size}: "
                "truncated, or no safetensors file",
                REFETCH,
            )
        text = source.read(name, 8, length)
    except StoreError as error:
        raise InvalidInputError.one(where, f"cannot be read: {error}") from None
    if length > _SMALL_BYTES and text.count(b"{") + text.count(b"[") > length // _BYTES_PER_BRACKET:
        raise InvalidInputError.one(where, "its header lists no tensors: corrupt", REFETCH)
    entries = parse_mapping(text, f"header of {where}", REFETCH)
    entries.pop("__metadata__", None)
    problems: list[Problem] = []
    tensors: list[TensorInfo] = []
    for tensor, entry in entries.items():
        try:
            tensors.append(_parse_entry(tensor, entry, name, 8 + length))
        except ValueError as error:
            problems.append(
                Problem(f"{where}: {tensor[:200]}", f"corrupt header entry ({error})", REFETCH)
            )
    tensors.sort(key=lambda info: (info.start, info.end))
    problems += _layout_problems(where, tensors, 8 + length, size)
    if len(problems) > _SHOWN_PROBLEMS:
        more = len(problems) - _SHOWN_PROBLEMS
        problems[_SHOWN_PROBLEMS:] = [Problem(where, f"has {more} more corrupt entries", REFETCH)]
    if problems:
        raise InvalidInputError(problems)
    return {info.name: info for info in tensors}


def _parse_entry(tensor: str, entry: object, file: str, data_start: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, end]}:
            pass
        case _:
            raise ValueError("it does not hold dtype, shape and two data_offsets")
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"unknown dtype {dtype[:40]!r}")
    if len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"it has {len(shape)} dimensions")
    if not all(type(size) is int and 0 <= size < _MAX_OFFSET for size in (*shape, start, end)):
        raise ValueError("a size is not a whole number")
    info = TensorInfo(tensor, dtype, tuple(shape), file, data_start + start, data_start + end)
    if info.bytes != info.elements * DTYPE_BYTES[dtype]:
        raise ValueError(f"{info.bytes} bytes cannot hold {dtype} {shape}")
    return info


def _layout_problems(
    where: str, tensors: list[TensorInfo], data_start: int, size: int
) -> list[Problem]:
    position = data_start
    for info in tensors:
        if info.start != position:
            fault = "overlaps the tensor before it" if info.start < position else "leaves a gap"
            return [Problem(f"{where}: {info.name}", f"{fault}: corrupt", REFETCH)]
        position = info.end
    if position == size:
        return []
    missing = position - size
    if missing > 0:
        last = next(info.name for info in tensors if info.end > size)
        return [Problem(f"{where}: {last}", f"truncated: {missing} bytes missing", REFETCH)]
    return [Problem(where, f"{-missing} bytes after the last tensor", REFETCH)]
