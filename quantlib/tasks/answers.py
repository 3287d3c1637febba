"""What a model answered to one task with one seed, as it is kept in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from quantlib.tasks.scoring import answer_part, closes_thought

ANSWERS_NAME = "answers.json"
FIGURES = ("score", "tokens", "empty", "valid", "closed")
"""What is kept of each answer besides its text: numbers."""

_NONE = "<|lm_eval"
"""How the harness begins what it puts where a server gave no text."""


def answers_of(path: Path, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The answers that the harness wrote, with what is counted of each.

    Args:
        path: What :class:`quantlib.tasks.harness.Request` calls output.
        tokenizer: Of the model.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    texts = [_text(each["answer"]) for each in found]
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
    return [
        {
            "answer": text,
            "score": each["score"],
            "tokens": float(length),
            "empty": float(not answer_part(text).strip()),
            "valid": each["valid"],
            "closed": float(closes_thought(text)),
        }
        for each, text, length in zip(found, texts, lengths, strict=True)
    ]


def figures_of(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each figure."""
    return {name: sum(each[name] for each in answers) / len(answers) for name in FIGURES}


def _text(answer: str | None) -> str:
    return "" if answer is None or answer.startswith(_NONE) else answer
