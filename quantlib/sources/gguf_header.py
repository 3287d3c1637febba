"""The header of a GGUF file, read without trusting it.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The ``gguf`` package has a
reader of its own, which turns every token of the vocabulary into an array: seconds where this one
takes milliseconds.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlib.errors import InvalidInputError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_REMEDY = "fetch the file again"

_MAX_HEADER_BYTES = 100_000_000
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 17
"""Files of the largest models hold a few thousand tensors, and headers of some 20 MB."""
_MAX_NESTING = 8
_MAX_ALIGNMENT = 1 << 20


@dataclass(frozen=True)
class GgufArray:
    """Stands for an array among the metadata, which is skipped.

    Attributes:
        length: How many elements it has.
    """

    length: int


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies.

    Attributes:
        name: Its name.
        shape: Its shape, row-major: ``[out_features, in_features]``.
        type: The number that ggml gives its element type.
        type_name: The name of that type: ``Q4_0``.
        start: Offset of its first byte in the file.
        bytes: Bytes of it.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    type_name: str
    start: int
    bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself.

    Attributes:
        path: The file.
        metadata: Its keys; arrays are left out but for their length.
        tensors: Its tensors by name, in the order of the file.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Reads and checks the header of a GGUF file.

    Raises:
        InvalidInputError: There is no such file, it is no GGUF file of a known version, or it is
            truncated or corrupt.
    """
    where = str(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data)
    except FileNotFoundError:
        raise InvalidInputError.one(where, "there is no such file") from None
    except OSError as error:
        raise InvalidInputError.one(where, f"cannot be read: {error.strerror}") from None
    except _TruncatedError:
        raise InvalidInputError.one(where, "truncated or corrupt header", _REMEDY) from None
    except ValueError as error:
        raise InvalidInputError.one(where, str(error), _REMEDY) from None


class _TruncatedError(ValueError):
    pass


class _Cursor:
    """Reads values one after the other, within what a header may be long."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 0
        self._end = min(len(data), _MAX_HEADER_BYTES)

    def take(self, length: int) -> bytes:
        start = self.position
        self.skip(length)
        return self.data[start : self.position]

    def skip(self, length: int) -> None:
        if length > self._end - self.position:
            raise _TruncatedError
        self.position += length

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int, nesting: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            if nesting == _MAX_NESTING:
                raise ValueError("metadata of arrays that are nested too deeply: corrupt")
            return self.array(nesting + 1)
        if kind not in _SCALARS:
            raise ValueError(f"metadata of unknown type {kind}: corrupt")
        return self.scalar(_SCALARS[kind])

    def array(self, nesting: int) -> GgufArray:
        kind, length = self.scalar("I"), self.scalar("Q")
        if kind in _SCALARS:
            self.skip(length * struct.calcsize("<" + _SCALARS[kind]))
        else:
            for _ in range(length):
                if kind == _STRING:
                    self.skip(self.scalar("Q"))
                else:
                    self.value(kind, nesting)
        return GgufArray(length)


def _parse(path: Path, data: mmap.mmap) -> GgufHeader:
    cursor = _Cursor(data)
    if cursor.take(4) != _MAGIC:
        raise ValueError("is no GGUF file")
    version = cursor.scalar("I")
    if version not in _VERSIONS:
        raise ValueError(f"GGUF version {version} is not supported (known: 2 and 3, little-endian)")
    tensor_count, key_count = cursor.scalar("Q"), cursor.scalar("Q")
    if key_count > _MAX_KEYS or tensor_count > _MAX_TENSORS:
        raise ValueError(f"{key_count} keys and {tensor_count} tensors: corrupt")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.string()
        if key in metadata:
            raise ValueError(f"{key[:200]} is there twice: corrupt")
        metadata[key] = cursor.value(cursor.scalar("I"))
    entries = [_read_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= _MAX_ALIGNMENT:
        raise ValueError("general.alignment is no small whole number: corrupt")
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in entries:
        tensor = _place(name, shape, kind, data_start + offset)
        if tensor.start + tensor.bytes > len(data):
            raise ValueError(f"{name}: truncated, its data ends behind the end of the file")
        if name in tensors:
            raise ValueError(f"{name} is there twice: corrupt")
        tensors[name] = tensor
    _require_apart(tensors.values())
    return GgufHeader(path, metadata, tensors)


def _require_apart(tensors: Iterable[GgufTensor]) -> None:
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        if tensor.start < end:
            raise ValueError(f"{tensor.name} overlaps another tensor: corrupt")
        end = max(end, tensor.start + tensor.bytes)


def _read_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string()
    dimensions = cursor.scalar("I")
    if dimensions > _MAX_DIMENSIONS:
        raise ValueError(f"{name} has {dimensions} dimensions: corrupt")
    shape = tuple(cursor.scalar("Q") for _ in range(dimensions))
    return name, shape[::-1], cursor.scalar("I"), cursor.scalar("Q")


def _place(name: str, shape: tuple[int, ...], kind: int, start: int) -> GgufTensor:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block_elements, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise ValueError(f"{name} has the unknown type {kind}") from None
    elements = math.prod(shape)
    row = shape[-1] if shape else 1
    if row % block_elements:
        raise ValueError(f"{name}: rows of {row} do not divide into blocks: corrupt")
    return GgufTensor(
        name=name,
        shape=shape,
        type=kind,
        type_name=GGMLQuantizationType(kind).name,
        start=start,
        bytes=elements // block_elements * block_bytes,
    )
