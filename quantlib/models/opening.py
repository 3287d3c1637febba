"""Opens a model: its checkpoint and the adapter of its family."""

from __future__ import annotations

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FileSource
from quantlib.models.base import BaseModelAdapter
from quantlib.models.registry import model_registry


def open_model(source: FileSource) -> tuple[Checkpoint, BaseModelAdapter]:
    """Reads the config and the headers of a model; no weight.

    Args:
        source: Where its files are.

    Returns:
        The checkpoint, by the names that the adapter goes by, and the adapter.

    Raises:
        InvalidInputError: Something of it is missing or damaged, or its config asks for what the
            adapter cannot do.
    """
    checkpoint = Checkpoint.open(source)
    adapter = model_registry.adapter_for(checkpoint.config)
    return adapter.arranged(checkpoint), adapter
