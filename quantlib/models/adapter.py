"""What opens the models of a family, and writes their checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import TensorInfo
from quantlib.models.family import ModelFamily
from quantlib.models.layout import Layout

if TYPE_CHECKING:
    import torch

    from quantlib.models.streamed import StreamedModel


class BaseModelAdapter(ModelFamily):
    """A model family, and how its models are opened and written."""

    @classmethod
    def find_layout(cls, checkpoint: Checkpoint, *, folds: bool = True) -> Layout:
        """Finds out what a model is made of; no weight is read.

        Args:
            checkpoint: The config, and the names and shapes of the tensors.
            folds: Whether to find out where scales can be folded.

        Raises:
            InvalidInputError: The checkpoint is not whole, or no blocks are to be seen in it.
        """
        from quantlib.models.finding import find_layout

        config = cls.transformers_config(checkpoint.config)
        return find_layout(replace(checkpoint, config=config), folds=folds)

    @abstractmethod
    def load_model(self, checkpoint: Checkpoint, device: torch.device) -> StreamedModel:
        """Opens a model whose weights are read block by block."""

    @abstractmethod
    def save_model(
        self,
        checkpoint: Checkpoint,
        output: Path,
        parts: Mapping[str, Mapping[str, TensorInfo]],
        quantization_config: Mapping[str, Any],
        *,
        unties: bool = False,
    ) -> None:
        """Writes what makes files of tensors a checkpoint: the index and the config."""
