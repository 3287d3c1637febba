"""What a worker is asked to do, and the names of what it writes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

STREAMED = "streamed"
"""In the place of an engine: transformers' modules, block by block, for an original."""

REFERENCE_NAME = "reference.safetensors"
"""``hidden`` ``[windows, sequence - 1, hidden_size]``, and ``logprobs`` float32 ``[sequence - 1]``
of the first window's tokens as the engine itself gives them."""

COMPARISON_NAME = "comparison.npz"
"""The tensors of :class:`quantlib.evaluation.metrics.Comparison`, each
``[windows, sequence - 1]``."""

HEAD_NAME = "head.safetensors"
"""``weight`` ``[vocabulary, hidden_size]`` of the original's head, and a ``bias`` it may have."""

DRAFTED_NAME = "drafted.json"
"""A :class:`Drafted`."""

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
        questions: Token sequences to answer.
        answer_tokens: At most so many tokens per answer.
        reference: :data:`REFERENCE_NAME` of the original model, to compare with; None for the
            original model itself, whose file is then written.
        output: Folder for what the worker writes.
        tensor_parallel_size: Devices that share the model.
        original_head: :data:`HEAD_NAME`, where the quantized model's head is another; None where it
            is the same.
        drafts: Whether the model's own draft layers guess while it completes the prompts, and
            nothing else is looked at.
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
    drafts: bool = False
    original_head: str | None = None
    questions: list[list[int]] = field(default_factory=list)
    answer_tokens: int = 0

    def write(self, path: Path) -> None:
        """Writes the job as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        """Reads what :meth:`write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class StreamedJob:
    """An original to read block by block.

    Attributes:
        store: Address of the store that its files are in.
        model: The fetch step's receipt, as JSON.
        layout: What it is made of, as JSON.
        device: auto, cpu or cuda.
        tokens: A .npy file, int64 ``[windows, sequence]``.
        output: Folder for what the worker writes.
    """

    store: str
    model: str
    layout: str
    device: str
    tokens: str
    output: str

    def write(self, path: Path) -> None:
        """Writes the job as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> StreamedJob:
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
        answers: The new tokens of each answer.
        seconds: What the completions took, together.
        throughput_method: What tokens per second mean, in words.
    """

    device: str
    numerics: str
    vocabulary: int | None
    probes: list[tuple[int, int, int]]
    completions: list[list[int]]
    answers: list[list[int]]
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


@dataclass(frozen=True)
class Drafted:
    """What became of the tokens that a model's own draft layers guessed, each one token ahead.

    Attributes:
        drafts: How many there were.
        accepted: How many of them the model then said.
        refused: Why nothing was drafted, in one line; None where it was.
    """

    drafts: int = 0
    accepted: int = 0
    refused: str | None = None

    @property
    def rate(self) -> float | None:
        """Share of the drafts that were accepted; None without a draft."""
        return self.accepted / self.drafts if self.drafts else None

    def write(self, path: Path) -> None:
        """Writes it as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Drafted:
        """Reads what :meth:`write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))
