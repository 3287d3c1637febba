"""A deeper model for memory measurements: the blocks of a real one, repeated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.writer import SafetensorsWriter
from quantlib.models import open_model


def write_deeper_model(source: Path, target: Path, times: int) -> None:
    """Writes a model with the blocks of another one after the other, several times over.

    Args:
        source: Folder of a checkpoint.
        target: Folder to write.
        times: How often the blocks are repeated.
    """
    checkpoint, adapter = open_model(FolderSource(source))
    target.mkdir(parents=True, exist_ok=True)
    with SafetensorsWriter(target / "model.safetensors") as writer:
        for name, info in checkpoint.tensors.items():
            if not name.startswith("model.layers."):
                writer.add(name, info.dtype, info.shape, checkpoint.read(name))
        for block in range(adapter.blocks * times):
            origin = adapter.block_prefix(block % adapter.blocks)
            for name in adapter.block_tensors(checkpoint, block % adapter.blocks):
                info = checkpoint.info(name)
                copy = adapter.block_prefix(block) + name.removeprefix(origin)
                writer.add(copy, info.dtype, info.shape, checkpoint.read(name))
        writer.finish()
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            shutil.copy(path, target)
    config = dict(checkpoint.config) | {"num_hidden_layers": adapter.blocks * times}
    (target / "config.json").write_text(json.dumps(config))
