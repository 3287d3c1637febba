"""What two models are judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.writer import SafetensorsWriter
from quantlib.evaluation.choose_engine import EngineChoice
from quantlib.store import Receipt
from quantlib.text.windows import Windows


@dataclass(frozen=True)
class OriginalHead:
    """The original's head, for a quantized model that has another.

    Attributes:
        checkpoint: The original.
        names: Of its tensors, by ``weight`` and ``bias``.
    """

    checkpoint: Checkpoint
    names: Mapping[str, str]

    def write(self, path: Path) -> None:
        """Writes it to a file of its own."""
        with SafetensorsWriter(path) as writer:
            for part, name in self.names.items():
                info = self.checkpoint.info(name)
                writer.add_pieces(part, info.dtype, info.shape, self.checkpoint.pieces(name))
            writer.finish()


@dataclass(frozen=True)
class Setting:
    """What two models are judged by.

    Attributes:
        engine: What runs them.
        device: auto, cpu or cuda.
        dtype: bfloat16 or float16.
        windows: The held-out text.
        windowed: Receipt of the windows.
        tokenizer: Of the models.
        prompts: To be completed by both.
        questions: To be answered by both, as the model is asked them.
        answer_tokens: At most so many tokens per answer.
        max_new_tokens: At most so many tokens per prompt.
        numerics: What decides how their predictions are rounded, besides the engine.
        tensor_parallel_size: Devices that share a model.
        dequantized: Why an original that is quantized is judged by what its weights stand for, and
            not as it is served; None where it is judged as it is.
        checkpoint_dequantized: The same of the quantized model.
        checkpoint_emulated: Why the quantized model is computed by emulation; None where it is not.
        cached: Whether a quantized model that is judged by its dequantized weights keeps keys and
            values in FP8 nevertheless.
        renamed: The names that vLLM knows for tensors that the original stores by others.
        drafts: Whether the model has layers that draft tokens.
        streamed: What the original is made of, as JSON, where it is read block by block; None where
            the engine holds it.
        original_head: Where the quantized model's head is another; None where it is the same.
        start: Which of the windows of ``windowed`` the first one is.
    """

    engine: EngineChoice
    device: str
    dtype: str
    windows: Windows
    windowed: Receipt
    tokenizer: Tokenizer
    prompts: tuple[str, ...]
    max_new_tokens: int
    numerics: Mapping[str, Any]
    tensor_parallel_size: int = 1
    dequantized: str | None = None
    checkpoint_dequantized: str | None = None
    checkpoint_emulated: str | None = None
    cached: bool = False
    renamed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    drafts: bool = False
    streamed: str | None = None
    original_head: OriginalHead | None = None
    questions: tuple[str, ...] = ()
    answer_tokens: int = 0
    start: int = 0

    def part(self, start: int, stop: int) -> Setting:
        """The same on some of the windows; prompts are completed with the first ones alone."""
        part = replace(self, windows=self.windows.part(start, stop), start=start)
        return part if start == 0 else part.reading_alone()

    def reading_alone(self) -> Setting:
        """The same without anything that a model has to say of itself."""
        return replace(self, prompts=(), questions=(), drafts=False)

    @property
    def read(self) -> dict[str, Any]:
        """Which of the windows are read."""
        return {"windows": [self.start, self.start + len(self.windows.tokens)]}

    def parameters(self) -> dict[str, Any]:
        """What decides a model's predictions, besides the model and the text."""
        shared = self.tensor_parallel_size
        return {
            **self.read,
            **({"tensor_parallel_size": shared} if shared > 1 else {}),
            **({"drafts": True} if self.drafts else {}),
            "engine": self.engine.name,
            "engine_version": self.engine.version,
            "device": self.device,
            "dtype": self.dtype,
            "prompts": list(self.prompts),
            "questions": list(self.questions),
            "answer_tokens": self.answer_tokens,
            "max_new_tokens": self.max_new_tokens,
        }
