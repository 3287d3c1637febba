"""What an engine does for the comparison of two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Scored:
    """A model's reading of a token window.

    Attributes:
        hidden: Final hidden states, the input of the head, ``[sequence, hidden_size]``.
        logprobs: The engine's own log likelihoods of all tokens but the first, float32
            ``[sequence - 1]``; None where they were not asked for.
    """

    hidden: Tensor
    logprobs: Tensor | None


class Engine(Protocol):
    """One loaded model.

    Attributes:
        device: cpu or cuda.
        numerics: In which dtypes the model runs, in words.
        throughput_method: What a completion rate of :meth:`complete` means, in words.
    """

    device: str
    numerics: str
    throughput_method: str

    def score(self, window: Tensor, own_logprobs: bool) -> Scored:
        """Reads a window, int64 ``[sequence]``."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[rows, vocabulary]`` of hidden states ``[rows, hidden_size]``."""

    def complete(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Continues token sequences greedily; gives the new tokens of each."""
