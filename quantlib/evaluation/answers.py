"""What a checkpoint answers where its original answers, and whether it is fit to be read.

Figures are of text that is given. What a model says by itself goes wrong in ways that they do not
show: it ends at once, it repeats itself without end, it opens a block of thinking
and never closes it. Each is held against what the original says to the same questions, for small
models do some of it themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from quantlib.checkpoint.source import FileSource
from quantlib.errors import QuantlibError
from quantlib.text.chat_template import ChatTemplate

QUESTIONS = (
    "Explain in a few sentences why the sky is blue.",
    "A train leaves at 9:40 and takes 85 minutes. When does it arrive? Think step by step.",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "List five vegetables, and say of each how it is cooked.",
)
"""Asked of both models, rendered by the chat template where there is one."""

_THINKING = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"))
_LONGEST_CYCLE = 32
_REPEATED = 96
"""Tokens at the end of an answer that a short cycle makes up, where it goes on without end."""


@dataclass(frozen=True)
class Answer:
    """What both models say to a question.

    Attributes:
        question: As it was given, rendered.
        original: New tokens of the original.
        quantized: New tokens of the quantized model.
        most: Tokens that an answer could have.
    """

    question: str
    original: Sequence[int]
    quantized: Sequence[int]
    most: int


def rendered_questions(source: FileSource) -> tuple[str, ...]:
    """The questions as a model is asked them when it is served.

    A template that refuses them is looked at elsewhere: the questions are given as they are.
    """
    try:
        template = ChatTemplate.of_model(source)
    except QuantlibError:
        template = None
    return tuple(_rendered(template, question) for question in QUESTIONS)


def _rendered(template: ChatTemplate | None, question: str) -> str:
    if template is None:
        return question
    given: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}],
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
    }
    try:
        return template.default.render({**template.special_tokens, **given})
    except Exception:  # the model's own program: any error is possible
        return question


Decode = Callable[[Sequence[int]], str]
"""From tokens to text, special tokens included."""


def answer_findings(answers: Sequence[Answer], decode: Decode) -> list[str]:
    """What is wrong with the quantized model's answers and is not with the original's.

    Each is said where it is so of more than half of the answers: of a single one it may be chance.

    Args:
        answers: Of both models to the same questions.
        decode: From tokens to text.
    """
    faults = {
        "nothing is said in": _says_nothing,
        "a few words are said again and again at the end of": _goes_round,
        "a block of thinking is opened and never closed in": _leaves_thinking_open,
    }
    counted = {
        words: sum(fault(answer, decode) for answer in answers) for words, fault in faults.items()
    }
    return [
        f"{words} {count} of {len(answers)} answers, and not in the original's"
        for words, count in counted.items()
        if 2 * count > len(answers)
    ]


def _says_nothing(answer: Answer, decode: Decode) -> bool:
    said = (decode(tokens).strip() for tokens in (answer.original, answer.quantized))
    original, quantized = (any(map(str.isalnum, text)) for text in said)
    return original and not quantized


def _goes_round(answer: Answer, decode: Decode) -> bool:
    """Whether an answer goes round that the original's does not.

    A model without a chat template goes on with a text, where the likeliest words come round by
    nature, of the one model sooner than of the other.
    """
    if answer.question in QUESTIONS:
        return False
    return _is_cycle(answer.quantized) and not _is_cycle(answer.original)


def _is_cycle(tokens: Sequence[int]) -> bool:
    end = list(tokens[-_REPEATED:])
    cycles = range(1, _LONGEST_CYCLE + 1)
    return len(end) == _REPEATED and any(end[cycle:] == end[:-cycle] for cycle in cycles)


def _leaves_thinking_open(answer: Answer, decode: Decode) -> bool:
    """Whether thinking stays open that the original closes.

    Of an answer that is cut off, only where the original closes it in half of the tokens.
    """
    whole = len(answer.quantized) < answer.most
    looked_at = answer.original if whole else answer.original[: answer.most // 2]
    return _is_open(answer.question + decode(answer.quantized)) and not _is_open(
        answer.question + decode(looked_at)
    )


def _is_open(text: str) -> bool:
    return any(text.rfind(opens) > text.rfind(closes) for opens, closes in _THINKING)
