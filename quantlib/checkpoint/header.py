"""The header of a safetensors file, read without trusting it.

The format is eight bytes of header length (little-endian), that many bytes of JSON, then the data:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from quantlib.checkpoint.source import FileSource
from quantlib.errors import InvalidInputError, Problem, StoreError

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
    try:
        entries = json.loads(text)
    except ValueError:
        raise InvalidInputError.one(where, "its header is not JSON: corrupt", REFETCH) from None
    if not isinstance(entries, dict):
        raise InvalidInputError.one(where, "its header is no mapping: corrupt", REFETCH)
    entries.pop("__metadata__", None)
    problems: list[Problem] = []
    tensors: list[TensorInfo] = []
    for tensor, entry in entries.items():
        try:
            tensors.append(_parse_entry(tensor, entry, name, 8 + length))
        except (KeyError, TypeError, ValueError) as error:
            problems.append(
                Problem(f"{where}: {tensor}", f"corrupt header entry ({error})", REFETCH)
            )
    tensors.sort(key=lambda info: (info.start, info.end))
    problems += _layout_problems(where, tensors, 8 + length, size)
    if problems:
        raise InvalidInputError(problems)
    return {info.name: info for info in tensors}


def _parse_entry(tensor: str, entry: dict, file: str, data_start: int) -> TensorInfo:
    dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"unknown dtype {dtype!r}")
    if not all(isinstance(size, int) and size >= 0 for size in (*shape, start, end)):
        raise ValueError("a size is not a whole number")
    info = TensorInfo(tensor, dtype, shape, file, data_start + start, data_start + end)
    if info.bytes != info.elements * DTYPE_BYTES[dtype]:
        raise ValueError(f"{info.bytes} bytes cannot hold {dtype} {list(shape)}")
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
