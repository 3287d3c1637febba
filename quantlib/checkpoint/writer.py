"""Writes a safetensors file as its tensors come, holding none of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from quantlib.checkpoint.header import DTYPE_BYTES

_CHUNK_BYTES = 4 << 20


def encode_header(entries: Mapping[str, Mapping[str, Any]]) -> bytes:
    """What stands in a safetensors file before the data.

    Args:
        entries: By name of tensor: ``dtype``, ``shape`` and ``data_offsets``.
    """
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":"))
    data = header.encode()
    data += b" " * (-len(data) % 8)
    return len(data).to_bytes(8, "little") + data


class SafetensorsWriter:
    """Writes one file; the file appears at :meth:`finish`.

    The header lists every tensor and stands first, so the data is spooled to a second file and
    copied behind the finished header; the same pass computes the digest.

    Attributes:
        path: The file to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._spool_path = path.with_name(path.name + ".data")
        self._spool = self._spool_path.open("wb")
        self._entries: dict[str, dict[str, Any]] = {}
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._spool.close()
        self._spool_path.unlink(missing_ok=True)

    def add(
        self, name: str, dtype: str, shape: Sequence[int], data: bytes | bytearray | memoryview
    ) -> None:
        """Appends a tensor whose bytes are there; otherwise as :meth:`add_pieces`."""
        self.add_pieces(name, dtype, shape, (data,))

    def add_pieces(
        self,
        name: str,
        dtype: str,
        shape: Sequence[int],
        pieces: Iterable[bytes | bytearray | memoryview],
    ) -> None:
        """Appends a tensor that comes in pieces.

        Args:
            name: Its name.
            dtype: Its dtype as safetensors writes it: ``BF16``.
            shape: Its shape.
            pieces: Its elements in row-major order, little-endian.

        Raises:
            ValueError: The name is taken, or the pieces have another length than the shape says.
        """
        if name in self._entries:
            raise ValueError(f"{name} is written already")
        length = 0
        for piece in pieces:
            self._spool.write(piece)
            length += memoryview(piece).nbytes
        if length != math.prod(shape) * DTYPE_BYTES[dtype]:
            self._spool.seek(self._position)
            self._spool.truncate()
            raise ValueError(f"{name}: {length} bytes cannot hold {dtype} {list(shape)}")
        self._entries[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [self._position, self._position + length],
        }
        self._position += length

    def finish(self) -> tuple[str, int]:
        """Writes the file.

        Returns:
            The hexadecimal sha256 of the file, and how many tensors it holds.
        """
        self._spool.close()
        header = encode_header(self._entries)
        digest = hashlib.sha256(header)
        with self.path.open("wb") as file, self._spool_path.open("rb") as spool:
            file.write(header)
            while chunk := spool.read(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
        self._spool_path.unlink()
        return digest.hexdigest(), len(self._entries)
