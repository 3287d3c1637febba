"""Opens a model: its checkpoint and the adapter of its family."""

from __future__ import annotations

from dataclasses import replace

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FileSource
from quantlib.formats.stored import plain
from quantlib.models.adapter import BaseModelAdapter
from quantlib.models.layout import Layout
from quantlib.models.registry import model_registry
from quantlib.models.servable import servable_config


def open_model(
    source: FileSource, layout: Layout | None = None, *, folds: bool = True
) -> tuple[Checkpoint, BaseModelAdapter]:
    """Reads the config and the headers of a model; no weight.

    Args:
        source: Where its files are.
        layout: What it is made of, where that was found out before; finding it out imports
            transformers.
        folds: Whether to find out where scales can be folded, if that has to be found out.

    Returns:
        The checkpoint, by the names that vLLM goes by, and the adapter. One that is quantized
        already is the plain one that it stands for.

    Raises:
        InvalidInputError: Something of it is missing or damaged, it is quantized in a way that is
            not read, or no blocks are to be seen in it.
    """
    return open_checkpoint(Checkpoint.open(source), layout, folds=folds)


def open_checkpoint(
    checkpoint: Checkpoint, layout: Layout | None = None, *, folds: bool = True
) -> tuple[Checkpoint, BaseModelAdapter]:
    """The same of one whose headers were read."""
    checkpoint = plain(checkpoint)
    checkpoint = replace(checkpoint, config=servable_config(checkpoint))
    adapter = model_registry.adapter_of(checkpoint.config)
    if layout is None:
        layout = adapter.find_layout(checkpoint, folds=folds)
    return checkpoint.renamed(layout.renamed), adapter(checkpoint.config, layout)
