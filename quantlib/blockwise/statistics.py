"""What quantizers learn of an input: its Hessian, and its extremes per channel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlib.models.layout import SharedInput
from quantlib.models.streamed import Block

PANEL_COLUMNS = 192
"""Columns of the Hessian handled at once; smaller panels skip more of the lower triangle."""


class HessianAccumulator:
    """``X.T @ X`` over the calibration tokens, for one input.

    Only the upper triangle is computed: the Hessian is symmetric, and this is where most of the
    time of calibration goes. Tokens in bfloat16 are multiplied in bfloat16 on a CPU, which rounds
    each call's products; over many calls that is far below what the choice of tokens changes. In
    float16 the products themselves would overflow: 512 tokens of 12 make more than its 65,504.
    """

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._sum = torch.zeros(in_features, in_features, device=device)
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """Adds tokens.

        Args:
            x: ``[..., in_features]``, a few hundred tokens in all.
        """
        tokens = x.reshape(-1, x.shape[-1])
        self.tokens += len(tokens)
        if tokens.device.type != "cpu" or tokens.dtype is torch.float16:
            tokens = tokens.float()
        for start in range(0, tokens.shape[1], PANEL_COLUMNS):
            panel = tokens[:, start : start + PANEL_COLUMNS]
            self._sum[start : start + PANEL_COLUMNS, start:] += panel.t() @ tokens[:, start:]

    def hessian(self) -> Tensor:
        """The Hessian divided by the number of tokens, float32 ``[in_features, in_features]``."""
        upper = self._sum.triu() / max(self.tokens, 1)
        return upper + upper.triu(1).t()


@dataclass(frozen=True)
class TokenKinds:
    """Of which kind of document each calibration token is.

    Attributes:
        of_tokens: An index of the kinds for each token of all windows, one window behind the other,
            negative for what was put between documents; int32 ``[tokens]``.
        names: The kinds.
    """

    of_tokens: Tensor
    names: Sequence[str]

    def count(self, rows: Iterable[Tensor]) -> dict[str, int]:
        """How many of some tokens, given by their places, are of each kind; none of the others."""
        counts = torch.zeros(len(self.names), dtype=torch.int64)
        for each in rows:
            found = self.of_tokens[each.cpu()]
            counts += torch.bincount(found[found >= 0], minlength=len(self.names))
        counted = zip(self.names, counts.tolist(), strict=True)
        return {name: count for name, count in counted if count}


class SeenInputs:
    """What is kept of a shared input, as it comes."""

    def __init__(self, needs_hessian: bool, needs_scale: bool) -> None:
        self._needs_hessian = needs_hessian
        self._needs_scale = needs_scale
        self._accumulator: HessianAccumulator | None = None
        self._largest = 0.0
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """Looks at tokens, ``[..., in_features]``."""
        self.tokens += x.numel() // x.shape[-1]
        if self._needs_hessian:
            if self._accumulator is None:
                self._accumulator = HessianAccumulator(x.shape[-1], x.device)
            self._accumulator.add(x)
        if self._needs_scale and x.numel():
            self._largest = max(self._largest, float(x.abs().max()))

    def hessian(self) -> Tensor | None:
        """None where nobody needs it."""
        return None if self._accumulator is None else self._accumulator.hessian()

    @property
    def largest(self) -> float:
        """The largest magnitude; 0 where nobody needs it."""
        return self._largest


class ChannelObserver:
    """The largest magnitude per input channel, of each shared input and its weights, in one block.

    Called with each shared input and what all batches bring to it.
    """

    def __init__(self, block: Block) -> None:
        self._block = block
        self._found: dict[str, Tensor] = {}

    def __call__(self, shared: SharedInput, inputs: Sequence[Tensor]) -> None:
        """Observes tokens, ``[..., in_features]`` of each batch."""
        weights = torch.cat([self._block.weight(linear) for linear in shared.linears])
        largest = torch.zeros(weights.shape[1], device=weights.device)
        for x in inputs:
            tokens = x.flatten(0, -2).abs()
            if len(tokens):
                largest = torch.maximum(largest, tokens.amax(0).float())
        self._found[f"{shared.name}.input_absmax"] = largest
        self._found[f"{shared.name}.weight_absmax"] = weights.abs().amax(0).float()

    def tensors(self) -> dict[str, Tensor]:
        """``<input>.input_absmax`` and ``.weight_absmax``, float32 ``[in_features]``."""
        return self._found


class TokenSample:
    """A few of the calibration tokens of one input, drawn at random over all of them.

    Which ones depends on the counts alone. Tokens at a fixed distance would do worse: where it
    divides the length of a window, the first token of every window is among them, and models give
    first tokens activations like no others.
    """

    def __init__(self, total: int, limit: int) -> None:
        """Draws the positions.

        Args:
            total: How many tokens will come.
            limit: How many of them to keep at most.
        """
        generator = torch.Generator().manual_seed(0)
        self._positions = torch.randperm(total, generator=generator)[:limit].sort().values
        self._seen = 0
        self._kept: list[Tensor] = []

    def add(self, x: Tensor) -> Tensor:
        """Looks at tokens, ``[..., in_features]``.

        Returns:
            Those that were not kept, ``[tokens, in_features]``.
        """
        tokens = x.reshape(-1, x.shape[-1])
        start, self._seen = self._seen, self._seen + len(tokens)
        here = self._positions[(self._positions >= start) & (self._positions < self._seen)]
        kept = torch.zeros(len(tokens), dtype=torch.bool)
        kept[here - start] = True
        kept = kept.to(tokens.device)
        self._kept.append(tokens[kept])
        return tokens[~kept]

    def tokens(self) -> Tensor:
        """The tokens that were kept, ``[kept, in_features]``, as they came."""
        return torch.cat(self._kept)


def energy_ratio(change: Tensor, weight: Tensor, hessian: Tensor | None) -> float:
    """tr(D H D.T) / tr(W H W.T), with the identity for a missing Hessian."""
    whole = energy(weight, hessian)
    return energy(change, hessian) / whole if whole > 0 else 0.0


def energy(matrix: Tensor, hessian: Tensor | None) -> float:
    """tr(M H M.T), from the upper half of H, which is symmetric."""
    if hessian is None:
        return float(matrix.square().sum())
    total = matrix.new_zeros(())
    for start in range(0, matrix.shape[1], PANEL_COLUMNS):
        columns = slice(start, start + PANEL_COLUMNS)
        panel = matrix[:, columns]
        before = matrix[:, :start] @ hessian[:start, columns]
        within = panel @ hessian[columns, columns]
        total += panel.flatten().dot((2 * before + within).flatten())
    return float(total)
