"""Opens a model: its checkpoint and the adapter of its family."""

from __future__ import annotations

from dataclasses import replace

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FileSource
from quantlib.formats.stored import plain
from quantlib.models.base import BaseModelAdapter
from quantlib.models.registry import model_registry
from quantlib.models.servable import renamed_tensors, servable_config


def open_model(source: FileSource) -> tuple[Checkpoint, BaseModelAdapter]:
    """Reads the config and the headers of a model; no weight.

    Args:
        source: Where its files are.

    Returns:
        The checkpoint, by the names that the adapter goes by, and the adapter. One that is
        quantized already is the plain one that it stands for.

    Raises:
        InvalidInputError: Something of it is missing or damaged, it is quantized in a way that is
            not read, or its config asks for what the adapter cannot do.
    """
    checkpoint = plain(Checkpoint.open(source))
    config = servable_config(checkpoint)
    adapter = model_registry.adapter_for(config)
    renamed = renamed_tensors(checkpoint, adapter)
    tensors = {renamed.get(name, name): info for name, info in checkpoint.tensors.items()}
    return adapter.arranged(replace(checkpoint, config=config, tensors=tensors)), adapter
