"""Checkpoint tensors as torch tensors and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import read_header
from quantlib.checkpoint.source import FileSource
from quantlib.checkpoint.writer import SafetensorsWriter

TORCH_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
"""torch's dtype by the name that safetensors gives it."""

DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
"""What safetensors calls a dtype of torch."""


def read_tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """One tensor in the dtype that it is stored in, on the CPU."""
    info = checkpoint.info(name)
    dtype = TORCH_DTYPES[info.dtype]
    if info.elements == 0:
        return torch.empty(info.shape, dtype=dtype)
    return torch.frombuffer(checkpoint.read(name), dtype=dtype).reshape(info.shape)


def read_slice(checkpoint: Checkpoint, name: str, index: int) -> torch.Tensor:
    """One of the equal parts that lie one after the other along a tensor's first axis.

    Args:
        checkpoint: Where the tensor is.
        name: The tensor, ``[parts, ...]``.
        index: Which part.
    """
    info = checkpoint.info(name)
    shape = info.shape[1:]
    part = info.part(name, index * (info.elements // info.shape[0]), shape)
    data = checkpoint.source.read(part.file, part.start, part.bytes)
    return torch.frombuffer(data, dtype=TORCH_DTYPES[info.dtype]).reshape(shape)


def read_rows(checkpoint: Checkpoint, name: str, start: int, stop: int) -> torch.Tensor:
    """Some rows of a matrix, in the dtype that it is stored in, on the CPU."""
    info = checkpoint.info(name)
    part = info.part(name, start * info.shape[1], (stop - start, info.shape[1]))
    data = checkpoint.source.read(part.file, part.start, part.bytes)
    return torch.frombuffer(data, dtype=TORCH_DTYPES[info.dtype]).reshape(part.shape)


def write_tensor(writer: SafetensorsWriter, name: str, tensor: torch.Tensor) -> None:
    """Appends a tensor, in its own dtype."""
    tensor = tensor.detach().cpu().contiguous()
    data = tensor.flatten().view(torch.uint8).numpy().data
    writer.add(name, DTYPE_NAMES[tensor.dtype], tensor.shape, data)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[str, int]:
    """Writes a safetensors file.

    Returns:
        Its hexadecimal sha256, and how many tensors it holds.
    """
    with SafetensorsWriter(path) as writer:
        for name, tensor in tensors.items():
            write_tensor(writer, name, tensor)
        return writer.finish()


def read_tensors(
    source: FileSource, file: str, prefixes: tuple[str, ...] = ("",)
) -> dict[str, torch.Tensor]:
    """Tensors of one safetensors file, in the dtypes that they are stored in.

    Args:
        source: Where the file is.
        file: Its name.
        prefixes: What the names of the tensors begin with; others are not read.

    Raises:
        InvalidInputError: The file is damaged.
    """
    header = read_header(source, file)
    checkpoint = Checkpoint(source=source, config={}, tensors=header)
    return {name: read_tensor(checkpoint, name) for name in header if name.startswith(prefixes)}
