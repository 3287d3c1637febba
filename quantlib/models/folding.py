"""Scales per input channel, folded into what gives linears their input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlib.models.layout import Producer, SharedInput
from quantlib.models.streamed import Block


@dataclass(frozen=True)
class Fold:
    """The place where the scales of an input go.

    Folding divides the input by a scale per channel; whoever folds multiplies the columns of the
    linears that read it by the same scales, so that the block's function stays.

    Attributes:
        block: The block.
        producer: What gives the input.
        rows: The producer's output channel that each input channel comes from, int64
            ``[in_features]``.
    """

    block: Block
    producer: Producer
    rows: Tensor

    @classmethod
    def of(cls, block: Block, producer: Producer, in_features: int) -> Fold:
        """The fold of an input with ``in_features`` channels."""
        device = block.tensors[f"{producer.name}.weight"].device
        channels = torch.arange(in_features, device=device)
        heads = channels // (producer.head_dim * producer.repeats)
        rows = producer.first_row + heads * producer.head_dim + channels % producer.head_dim
        return cls(block, producer, rows)

    def tie(self, scales: Tensor) -> Tensor:
        """Scales that are equal where channels come from the same one: their geometric mean.

        Args:
            scales: Positive, float32 ``[..., in_features]``.
        """
        if self.producer.repeats == 1:
            return scales
        sums = scales.new_zeros(*scales.shape[:-1], int(self.rows.max()) + 1)
        sums.index_add_(-1, self.rows, scales.log())
        return (sums / self.producer.repeats).exp()[..., self.rows]

    def effective(self, scales: Tensor) -> Tensor:
        """What the input is divided by once the producer has been rounded to its stored dtype.

        Args:
            scales: Positive, float32 ``[in_features]``, tied.
        """
        if not self.producer.norm:
            return scales
        offset = self.producer.offset
        before = self._norm_weight() + offset
        after = self.norm(scales)[f"{self.producer.name}.weight"].float() + offset
        divided = (before / after)[self.rows]
        return torch.where(divided.isfinite() & (divided > 0), divided, scales)

    def divisors(self, scales: Tensor) -> Tensor:
        """What each output channel of the producer is divided by, float32 ``[out_features]``."""
        weight = self.block.tensors[f"{self.producer.name}.weight"]
        divisors = torch.ones(len(weight), device=weight.device)
        divisors[self.rows] = scales
        return divisors

    def norm(self, scales: Tensor) -> dict[str, Tensor]:
        """A norm's weight with the scales folded in, by name within the block, as stored.

        It keeps the dtype that it has in the checkpoint.

        Args:
            scales: float32 ``[in_features]``, tied.
        """
        name = f"{self.producer.name}.weight"
        offset = self.producer.offset
        weight = (self._norm_weight() + offset) / self.divisors(scales) - offset
        return {name: weight.to(self.block.stored[name])}

    def bias(self, scales: Tensor) -> dict[str, Tensor]:
        """The bias of a linear with the scales folded in, if it has one, as stored."""
        name = f"{self.producer.name}.bias"
        if name not in self.block.tensors:
            return {}
        bias = self.block.as_stored(name).float()
        return {name: (bias / self.divisors(scales)).to(self.block.stored[name])}

    def _norm_weight(self) -> Tensor:
        return self.block.as_stored(f"{self.producer.name}.weight").float()


def divided_outputs(
    block: Block, inputs: Sequence[SharedInput], scales: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What the outputs of linears are divided by where scales of inputs are folded into them.

    Args:
        block: The block.
        inputs: Its shared inputs.
        scales: What they are divided by, float32 ``[in_features]`` by name.

    Returns:
        float32 ``[out_features]`` by the linear's name within the block.
    """
    found = {}
    for shared in inputs:
        producer, scale = shared.producer, scales.get(shared.name)
        if scale is not None and producer is not None and not producer.norm:
            fold = Fold.of(block, producer, len(scale))
            found[producer.name] = fold.divisors(scale.to(block.device))
    return found
