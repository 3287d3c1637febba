"""What the rest of quantlib needs to know of a model family."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import TensorInfo
from quantlib.errors import Problem

if TYPE_CHECKING:
    import torch

    from quantlib.models.decoder import DecoderBlock
    from quantlib.models.streamed import StreamedModel


@dataclass(frozen=True)
class Producer:
    """What gives a group its input, channel by channel.

    Dividing an output channel of the producer by a positive number divides the input channels that
    come from it by that number, and nothing else in the model changes.

    Attributes:
        name: A norm or a linear within the block: ``input_layernorm``, ``self_attn.v_proj``.
        norm: Whether it is a norm.
        first_row: The row of the linear that gives the first channel, where it gives other things
            too.
        head_dim: Channels of a head, where ``repeats`` is not 1.
        repeats: How many heads of the input in a row come from one head of the producer, as in
            grouped-query attention.
    """

    name: str
    norm: bool = False
    first_row: int = 0
    head_dim: int = 1
    repeats: int = 1


@dataclass(frozen=True)
class LinearGroup:
    """Linears of a block that share an input.

    Attributes:
        name: What the input is: ``attention_input``.
        linears: Their names within the block, in the order in which vLLM fuses them.
        producer: Where a scale per input channel can be folded; None where it cannot.
        expert: Which expert of a mixture they belong to; its input is the tokens routed to it.
            None outside of experts.
    """

    name: str
    linears: tuple[str, ...]
    producer: Producer | None = None
    expert: int | None = None


def without_expert(linear: str) -> str:
    """The name that the same linear has in every expert: ``mlp.experts.*.up_proj``."""
    return re.sub(r"\.\d+\.", ".*.", linear)


class BaseModelAdapter(ABC):
    """A model family.

    An adapter holds names and arithmetic, never weights.

    Attributes:
        config: The parsed ``config.json``.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    @property
    @abstractmethod
    def blocks(self) -> int:
        """Number of blocks."""

    @property
    @abstractmethod
    def max_sequence_length(self) -> int:
        """Tokens that the model was made for."""

    @abstractmethod
    def block_prefix(self, block: int) -> str:
        """What the names of a block's tensors start with: ``model.layers.3.``."""

    @abstractmethod
    def groups(self, block: int) -> tuple[LinearGroup, ...]:
        """The linears of a block, in the order in which their inputs arise."""

    @abstractmethod
    def fused(self, block: int) -> Mapping[str, tuple[str, ...]]:
        """The linears that vLLM fuses, by the name that it gives the fused one or all of them."""

    def routers(self, block: int) -> tuple[str, ...]:
        """Names of a block's linears that choose experts; they are never quantized."""
        return ()

    @property
    @abstractmethod
    def embedding(self) -> str:
        """Name of the token embedding; it is never quantized."""

    @property
    @abstractmethod
    def head(self) -> str:
        """Name of the linear that gives the logits; it is never quantized."""

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return False

    @abstractmethod
    def problems(self, checkpoint: Checkpoint) -> list[Problem]:
        """What is missing or misshapen in a checkpoint of this family."""

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
    ) -> None:
        """Writes what makes files of tensors a checkpoint: the index and the config."""

    @abstractmethod
    def build_block(self, model: StreamedModel, block: int) -> DecoderBlock:
        """Reads one block and makes it computable."""

    def format_problem(self, format_name: str, exact: Sequence[Collection[str]]) -> str | None:
        """Why vLLM cannot read the family in a format that it reads otherwise; None where it can.

        Args:
            format_name: The format.
            exact: For each block, the names within it of the linears that stay exact.
        """
        return None

    def arranged(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with the names and shapes that the adapter and vLLM go by.

        A family that is stored in several layouts says here which bytes of a file are which linear.
        """
        return checkpoint

    def linears(self, block: int) -> tuple[str, ...]:
        """Names of all linears of a block that can be quantized."""
        return tuple(linear for group in self.groups(block) for linear in group.linears)

    def linear_name(self, block: int, linear: str) -> str:
        """The full name of a linear: ``model.layers.3.mlp.up_proj``."""
        return self.block_prefix(block) + linear

    def linear_shape(self, checkpoint: Checkpoint, block: int, linear: str) -> tuple[int, int]:
        """``(out_features, in_features)`` of a linear."""
        rows, columns = checkpoint.info(self.linear_name(block, linear) + ".weight").shape
        return rows, columns

    def block_tensors(self, checkpoint: Checkpoint, block: int) -> tuple[str, ...]:
        """Full names of a block's tensors, in the order of the file."""
        prefix = self.block_prefix(block)
        return tuple(name for name in checkpoint.tensors if name.startswith(prefix))
