"""One pass over a weight file: its digest, and whether every number in it is finite."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np

from quantlib.checkpoint.header import TensorInfo
from quantlib.errors import InvalidInputError, Problem
from quantlib.runtime.progress import Advance

ShowProgress = Callable[[str, int, str], AbstractContextManager[Advance]]
"""What ``progress_bar`` of quantlib.runtime.progress is: label, total and unit to a function."""

_CHUNK_BYTES = 16 << 20
_SCAN_ELEMENTS = 1 << 18
"""Numbers that are examined at a time: few enough that the working copy stays in the cache."""

_EXPONENTS: dict[str, tuple[type[np.unsignedinteger], int]] = {
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
    "F32": (np.uint32, 0x7F80_0000),
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F),
    "F8_E8M0": (np.uint8, 0xFF),
}
"""A number is NaN or Inf exactly if all bits of its exponent are set (IEEE 754, 3.4); of FP8 E4M3
and of E8M0, which have no Inf, if all bits but the sign are (OCP Microscaling Formats 1.0, 5.3)."""


def count_nonfinite(data: bytes | bytearray | memoryview, dtype: str) -> int:
    """How many numbers are NaN or Inf.

    Args:
        data: Little-endian numbers.
        dtype: As safetensors writes it; whole numbers are finite.
    """
    if dtype not in _EXPONENTS:
        return 0
    unsigned, exponent = _EXPONENTS[dtype]
    bits = np.frombuffer(data, dtype=unsigned)
    count = 0
    for start in range(0, bits.size, _SCAN_ELEMENTS):
        exponents = bits[start : start + _SCAN_ELEMENTS] & unsigned(exponent)
        # The largest exponent decides quickly; counting is for the rare tensor that has one.
        if exponents.max() == exponent:
            count += int(np.count_nonzero(exponents == exponent))
    return count


def nonfinite_problem(where: str, tensor: str, count: int, elements: int) -> Problem:
    """The problem of a tensor that holds NaN or Inf."""
    return Problem(
        f"{where}: {tensor}",
        f"holds NaN or Inf in {count} of {elements} numbers",
        "the checkpoint is damaged: fetch or convert it again",
    )


def hash_and_scan(
    path: Path, tensors: Iterable[TensorInfo], advance: Advance
) -> tuple[str, list[Problem]]:
    """Reads a safetensors file once, in chunks.

    Args:
        path: The file.
        tensors: Its tensors.
        advance: Called with the number of bytes read.

    Returns:
        The file's hexadecimal sha256, and one problem per tensor that holds NaN or Inf.

    Raises:
        InvalidInputError: The file ends before a tensor does.
    """
    with path.open("rb", buffering=0) as file:
        return _hash_and_scan(file, str(path), tensors, advance)


def hash_and_scan_chunks(
    chunks: Iterable[bytes | bytearray],
    where: str,
    tensors: Iterable[TensorInfo],
    advance: Advance,
) -> tuple[str, list[Problem]]:
    """The same of a file that comes in chunks and is not kept.

    Args:
        chunks: The file.
        where: What to call it.
        tensors: Its tensors.
        advance: Called with the number of bytes read.

    Raises:
        InvalidInputError: The file ends before a tensor does.
    """
    return _hash_and_scan(_Stream(chunks), where, tensors, advance)


class _Readable(Protocol):
    def read(self, length: int, /) -> bytes:
        """Up to ``length`` bytes; none at the end."""


class _Stream:
    """Chunks as something to read from."""

    def __init__(self, chunks: Iterable[bytes | bytearray]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def read(self, length: int, /) -> bytes:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._rest = memoryview(chunk)
        data, self._rest = self._rest[:length], self._rest[length:]
        return bytes(data)


def _hash_and_scan(
    file: _Readable, where: str, tensors: Iterable[TensorInfo], advance: Advance
) -> tuple[str, list[Problem]]:
    digest = hashlib.sha256()
    problems = []
    position = 0
    for info in sorted(tensors, key=lambda info: info.start):
        for chunk in _chunks(file, info.start - position, where):
            digest.update(chunk)
        count = 0
        for chunk in _chunks(file, info.bytes, where):
            digest.update(chunk)
            count += count_nonfinite(chunk, info.dtype)
            advance(len(chunk))
        if count:
            problems.append(nonfinite_problem(where, info.name, count, info.elements))
        position = info.end
    while rest := file.read(_CHUNK_BYTES):
        digest.update(rest)
        advance(len(rest))
    return digest.hexdigest(), problems


def _chunks(file: _Readable, length: int, where: str) -> Iterator[bytes]:
    """The next ``length`` bytes; every chunk but the last is a whole number of elements."""
    while length:
        wanted = min(length, _CHUNK_BYTES)
        chunk = file.read(wanted)
        while len(chunk) < wanted:
            more = file.read(wanted - len(chunk))
            if not more:
                raise InvalidInputError.one(where, f"truncated: {length} bytes missing")
            chunk += more
        length -= wanted
        yield chunk
