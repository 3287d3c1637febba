"""A model whose function is that of another one and whose weights lie elsewhere.

    python benchmarks/off_lattice.py MODEL OUTPUT

Models that a package registry ships have 4-bit weights, and are nearly exact in 4 bits again: what
a method does for other models, they do not show. Here the input channels of every shared input
that allows it are multiplied by random factors, which are folded into the norm or the linear
before. A group's weights then have no common step any more.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import read_tensor
from quantlib.models import open_model
from quantlib.models.folding import Fold
from quantlib.models.streamed import Block

OCTAVES = 0.5
"""Factors are between two to the power of minus this and of this."""


def write_off_lattice(source: Path, target: Path, seed: int = 0) -> None:
    """Writes the model.

    Args:
        source: Folder of a checkpoint.
        target: Folder to write.
        seed: Of the factors.
    """
    checkpoint, adapter = open_model(FolderSource(source))
    state = {name: read_tensor(checkpoint, name) for name in checkpoint.tensors}
    generator = torch.Generator().manual_seed(seed)
    model = adapter.load_model(checkpoint, torch.device("cpu"))
    for block in model.each(range(adapter.blocks)):
        _rescale(block, generator)
        for name in block.stored:
            if block.tensors.was_set(name):
                full = adapter.block_prefix(block.index) + name
                state[full] = block.tensors[name].to(state[full].dtype)
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and ".safetensors" not in path.name:
            shutil.copy(path, target)
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})


def _rescale(block: Block, generator: torch.Generator) -> None:
    """Divides what gives inputs by random factors, and multiplies the columns that read them."""
    for shared in block.inputs:
        if (producer := shared.producer) is None:
            continue
        columns = block.weight(shared.linears[0]).shape[1]
        fold = Fold.of(block, producer, columns)
        exponents = (2 * torch.rand(columns, generator=generator) - 1) * OCTAVES
        scales = fold.effective(fold.tie(exponents.exp2()))
        changed: dict[str, Tensor] = fold.norm(scales) if producer.norm else fold.bias(scales)
        if not producer.norm:
            weight = block.weight(producer.name)
            changed[f"{producer.name}.weight"] = weight / fold.divisors(scales)[:, None]
        for linear in shared.linears:
            changed[f"{linear}.weight"] = block.weight(linear) * scales
        for name, tensor in changed.items():
            block.tensors[name] = tensor


if __name__ == "__main__":
    write_off_lattice(Path(sys.argv[1]), Path(sys.argv[2]))
