"""A model whose weights are read when they are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.tensors import TORCH_DTYPES, read_tensor
from quantlib.compute import product_dtype
from quantlib.models.decoder import DecoderBlock
from quantlib.models.rotary import Rotary

if TYPE_CHECKING:
    from quantlib.models.huggingface import BaseHuggingFaceAdapter


class StreamedModel:
    """A model on disk, of which at most one block is in memory at a time.

    Attributes:
        adapter: The model's family.
        checkpoint: Its weights.
        device: Where it is computed.
        dtype: The dtype of its matrix products.
        stored_dtype: The dtype that the checkpoint's linears are stored in.
    """

    def __init__(
        self, adapter: BaseHuggingFaceAdapter, checkpoint: Checkpoint, device: torch.device
    ) -> None:
        self.adapter = adapter
        self.checkpoint = checkpoint
        self.device = device
        first_linear = adapter.linear_name(0, adapter.linears(0)[0])
        self.stored_dtype = TORCH_DTYPES[checkpoint.info(f"{first_linear}.weight").dtype]
        self.dtype = product_dtype(device, self.stored_dtype)

    def tensor(self, name: str) -> Tensor:
        """One tensor on the device, in the wider of its own dtype and that of the products."""
        stored = read_tensor(self.checkpoint, name)
        return stored.to(self.device, torch.promote_types(stored.dtype, self.dtype))

    def rotary(self, block: int) -> Rotary:
        """A block's rotary embedding."""
        return Rotary.from_parameters(
            self.adapter.rope_parameters(block),
            self.adapter.head_dim,
            self.adapter.max_sequence_length,
            self.device,
        )

    def block(self, index: int) -> DecoderBlock:
        """One block with its weights."""
        return self.adapter.build_block(self, index)

    def embed(self, tokens: Tensor) -> Tensor:
        """The first block's input.

        Args:
            tokens: int64 ``[samples, sequence]``.

        Returns:
            ``[samples, sequence, hidden_size]`` in the checkpoint's dtype, on the CPU.
        """
        table = read_tensor(self.checkpoint, f"{self.adapter.embedding}.weight")
        return self.adapter.scale_embeddings(functional.embedding(tokens, table))
