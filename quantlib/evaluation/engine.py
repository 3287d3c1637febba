"""What an engine does for the comparison of two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from quantlib.evaluation.metrics import Comparison, Leads


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
    """One loaded model. What takes the head is done where the model is: logits stay there.

    Attributes:
        device: cpu or cuda.
        numerics: In which dtypes the model runs, in words.
        throughput_method: What a completion rate of :meth:`complete` means, in words.
        tolerance: Nats by which the engine's own log likelihoods may differ from those that the
            head gives once more; a wrong row or head is off by far more.
    """

    device: str
    numerics: str
    throughput_method: str
    tolerance: float

    def score(self, window: Tensor, own_logprobs: bool) -> Scored:
        """Reads a window, int64 ``[sequence]``."""

    def count_logits(self, hidden: Tensor) -> int:
        """How many logits the head gives for each of the hidden states ``[rows, hidden_size]``."""

    def compare(self, reference: Tensor, candidate: Tensor, targets: Tensor) -> Comparison:
        """Compares what the heads make of two models' hidden states: each its own, or both one.

        Args:
            reference: ``[positions, hidden_size]``.
            candidate: The same of the other model.
            targets: int64 ``[positions]``, the token that comes next.

        Returns:
            The comparison, on the CPU.
        """

    def leads(self, hidden: Tensor) -> Leads:
        """What the head finds most likely after hidden states ``[rows, hidden_size]``."""

    def next_token_logprobs(
        self, hidden: Tensor, targets: Tensor, *, original: bool = False
    ) -> Tensor:
        """Log likelihood of each target by the head, float32 ``[positions]`` on the CPU.

        Args:
            hidden: ``[positions, hidden_size]``.
            targets: int64 ``[positions]``.
            original: Whether they are the original's, whose head may be another.
        """

    def complete(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Continues token sequences greedily; gives the new tokens of each."""

    def close(self) -> None:
        """Ends the processes that it has started."""
