"""What a worker is asked to do, and the names of what it writes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

REFERENCE_NAME = "reference.safetensors"
"""``hidden`` ``[windows, sequence - 1, hidden_size]``, and ``logprobs`` float32 ``[sequence - 1]``
of the first window's tokens as the engine itself gives them."""

COMPARISON_NAME = "comparison.npz"
"""The tensors of :class:`quantlib.evaluation.metrics.Comparison`, each
``[windows, sequence - 1]``."""

OUTCOME_NAME = "outcome.json"
"""A :class:`Outcome`."""


@dataclass(frozen=True)
class Job:
    """One model to run.

    Attributes:
        engine: vllm or transformers.
        model: Folder of the model.
        device: auto, cpu or cuda.
        dtype: bfloat16 or float16: what weights that are not quantized, and activations, are in.
        tokens: A .npy file, int64 ``[windows, sequence]``.
        prompts: Token sequences to continue.
        max_new_tokens: At most so many tokens per prompt.
        reference: :data:`REFERENCE_NAME` of the original model, to compare with; None for the
            original model itself, whose file is then written.
        output: Folder for what the worker writes.
        tensor_parallel_size: Devices that share the model.
    """

    engine: str
    model: str
    device: str
    dtype: str
    tokens: str
    prompts: list[list[int]]
    max_new_tokens: int
    reference: str | None
    output: str
    tensor_parallel_size: int = 1

    def write(self, path: Path) -> None:
        """Writes the job as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        """Reads what :meth:`write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Outcome:
    """What a worker found besides tensors.

    Attributes:
        device: cpu or cuda.
        numerics: In which dtypes the model ran, in words.
        vocabulary: How many tokens the logits are over; None of the original, which needs none.
        probes: ``(window, position, token)`` as :func:`quantlib.evaluation.probes.pick` picks
            them; none of the original.
        completions: The new tokens of each prompt.
        seconds: What the completions took, together.
        throughput_method: What tokens per second mean, in words.
    """

    device: str
    numerics: str
    vocabulary: int | None
    probes: list[tuple[int, int, int]]
    completions: list[list[int]]
    seconds: float
    throughput_method: str

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens of all prompts per second; None without a prompt."""
        tokens = sum(map(len, self.completions))
        return round(tokens / self.seconds, 1) if tokens else None

    def write(self, path: Path) -> None:
        """Writes the outcome as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Outcome:
        """Reads what :meth:`write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))
