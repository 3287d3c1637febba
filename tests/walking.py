"""One block of a model on hidden states of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantlib.blockwise.quantize_block import QuantizedBlock, quantize_block
from quantlib.checkpoint.source import FolderSource
from quantlib.models import SharedInput, open_model
from quantlib.models.streamed import Block, BlockWalk, StreamedModel
from quantlib.quantizers import BaseQuantizer

Observe = Callable[[SharedInput, Sequence[Tensor]], None]


def opened(folder: Path) -> StreamedModel:
    """The model of a folder, on the CPU."""
    checkpoint, adapter = open_model(FolderSource(folder))
    return adapter.load_model(checkpoint, torch.device("cpu"))


def hidden_states(samples: int = 8, sequence: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    """Normally distributed hidden states ``[samples, sequence, width]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, sequence, width, generator=generator)


def walk_of(model: StreamedModel, hidden: Tensor, index: int) -> BlockWalk:
    """The hidden states standing before a block that is not the first."""
    assert index > 0
    tokens = torch.zeros(hidden.shape[:2], dtype=torch.int64)
    return model.walk(tokens, range(index, index + 1), {"hidden": hidden})


def forward(
    model: StreamedModel,
    hidden: Tensor,
    observe: Observe | None = None,
    change: Callable[[Block], None] | None = None,
    written: QuantizedBlock | None = None,
    index: int = 1,
) -> Tensor:
    """What a block makes of hidden states.

    Args:
        model: The model.
        hidden: ``[samples, sequence, hidden_size]``.
        observe: Called with each shared input and what the batches bring.
        change: Called with the block before.
        written: Weights and other tensors to put in their places.
        index: Which block; not the first.
    """
    outputs: dict[str, Tensor] = {}
    with torch.no_grad():
        walk = walk_of(model, hidden, index)
        for block in walk:
            if change is not None:
                change(block)
            for name, tensor in (written.changed if written else {}).items():
                block.tensors[name] = tensor
            for standing in walk.standings(block, block.inputs):
                if written is not None:
                    _write(block, standing.shared, written)
                if observe is not None:
                    observe(standing.shared, standing.inputs)
            outputs = walk.boundary()
    return outputs["hidden"]


def _write(block: Block, shared: SharedInput, written: QuantizedBlock) -> None:
    for name in shared.linears:
        if name in written.linears:
            block.tensors[f"{name}.weight"] = written.linears[name].dequantize()


def of_all(
    block: Block, quantizer: BaseQuantizer, exact: Collection[str] = ()
) -> dict[str, BaseQuantizer]:
    """One quantizer for all linears of a block but some."""
    linears = (linear for shared in block.inputs for linear in shared.linears)
    return {linear: quantizer for linear in linears if linear not in exact}


def quantized(
    model: StreamedModel,
    hidden: Tensor,
    quantizer: BaseQuantizer,
    exact: Collection[str] = (),
    stored: torch.dtype = torch.float32,
    change: Callable[[Block], None] | None = None,
    index: int = 1,
    **options: Any,
) -> tuple[QuantizedBlock, Tensor]:
    """A block that is quantized on hidden states, and what it makes of them."""
    with torch.no_grad():
        walk = walk_of(model, hidden, index)
        for block in walk:
            if change is not None:
                change(block)
            quantizers = of_all(block, quantizer, exact)
            result = quantize_block(block, walk, quantizers, stored, **options)
            output = walk.boundary()["hidden"]
    return result, output


def inputs_of(model: StreamedModel, hidden: Tensor, **how: Any) -> dict[str, Tensor]:
    """What the linears of a block read, by shared input, ``[tokens, in_features]``."""
    seen: dict[str, Tensor] = {}

    def observe(shared: SharedInput, inputs: Sequence[Tensor]) -> None:
        seen[shared.name] = torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs])

    forward(model, hidden, observe, **how)
    return seen


def weights_of(model: StreamedModel, index: int = 1) -> Mapping[str, Tensor]:
    """The weights of a block's linears outside of experts, by name."""
    block = model.block(index)
    return {
        linear: block.weight(linear)
        for shared in block.inputs
        if shared.expert is None
        for linear in shared.linears
    }
