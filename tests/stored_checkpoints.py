"""Tiny checkpoints with quantized weights, and a source that notes what is read of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import read_tensor
from quantlib.errors import InvalidInputError
from quantlib.formats.stored import plain


def write(
    folder: Path, tensors: Mapping[str, Tensor], quantization: Any, dtype: str | None = "bfloat16"
) -> Checkpoint:
    """A checkpoint that need be no model."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"quantization_config": quantization} | ({"dtype": dtype} if dtype else {})
    (folder / "config.json").write_text(json.dumps(config))
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    return Checkpoint.open(FolderSource(folder))


class Noted:
    """A source that notes the ranges that are read."""

    def __init__(self, source: FolderSource) -> None:
        self.source = source
        self.reads: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytearray:
        data = self.source.read(name, offset, length)
        self.reads.append(len(data))
        return data


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same bit for bit, NaN and the sign of zero included."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    ours, theirs = (each.contiguous().flatten().view(torch.uint8) for each in (one, other))
    return torch.equal(ours, theirs)


def check(checkpoint: Checkpoint, name: str, expected: Tensor) -> None:
    """Reads a weight whole, and ranges of it that begin and end anywhere."""
    read = plain(checkpoint)
    assert "quantization_config" not in read.config
    info = read.info(name)
    assert info.shape == tuple(expected.shape)
    assert same(read_tensor(read, name), expected)
    flat = expected.reshape(-1, expected.shape[-1])
    rows, columns = flat.shape
    for first, last in ((0, 1), (rows - 1, rows), (rows // 3, rows // 2 + 1), (1, rows)):
        part = info.part("part", first * columns, (last - first, columns))
        data = read.source.read(part.file, part.start, part.bytes)
        assert same(
            torch.frombuffer(data, dtype=expected.dtype).reshape(part.shape), flat[first:last]
        )
    some = read.source.read(info.file, info.start + 3, 2 * columns + 5)
    assert some == read.read(name)[3 : 2 * columns + 8]


def refusals(checkpoint: Checkpoint) -> str:
    """What is said of a checkpoint that is refused, a line for each problem."""
    try:
        plain(checkpoint)
    except InvalidInputError as error:
        lines = str(error).splitlines()
        assert len(lines) == len(error.problems)
        return "\n".join(lines)
    raise AssertionError("it was not refused")
