"""What is wrong with answers, held against those of the original."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from quantlib.checkpoint.source import FolderSource
from quantlib.evaluation.answers import QUESTIONS, Answer, answer_findings, rendered_questions

MOST = 256
WORDS = {0: "<think>", 1: "</think>", 2: "", 3: " \n"}
FLUENT = tuple(np.random.default_rng(0).integers(10, 5000, MOST).tolist())
THOUGHT = (0, *FLUENT[:60], 1, *FLUENT[60:90])


def decode(tokens: Sequence[int]) -> str:
    return "".join(WORDS.get(token, f"w{token} ") for token in tokens)


def answers(original: Sequence[int], quantized: Sequence[int], wrong: int = 4) -> list[Answer]:
    """Four answers, so many of which are those; the others are good."""
    return [
        Answer("Why?", original, quantized if number < wrong else original, MOST)
        for number in range(4)
    ]


def test_answers_that_differ_are_no_fault() -> None:
    assert answer_findings(answers(FLUENT, FLUENT[::-1]), decode) == []
    assert answer_findings(answers(THOUGHT, (0, *FLUENT[:100], 1, 77)), decode) == []
    assert answer_findings([], decode) == []


@pytest.mark.parametrize("empty", [(), (2,), (3, 3, 2)])
def test_nothing_is_said(empty: Sequence[int]) -> None:
    assert answer_findings(answers(FLUENT, empty), decode) == [
        "nothing is said in 4 of 4 answers, and not in the original's"
    ]
    assert answer_findings(answers(empty, empty), decode) == []


@pytest.mark.parametrize("cycle", [1, 3, 17, 32])
def test_words_go_round(cycle: int) -> None:
    turning = (*FLUENT[:100], *(FLUENT[:cycle] * MOST)[: MOST - 100])
    assert answer_findings(answers(FLUENT, turning, wrong=3), decode) == [
        "a few words are said again and again at the end of 3 of 4 answers, and not in the "
        "original's"
    ]
    # Small models do it themselves.
    assert answer_findings(answers(turning, turning), decode) == []


def test_one_answer_in_two_may_be_chance() -> None:
    turning = (*FLUENT[:100], *[7] * 156)
    assert answer_findings(answers(FLUENT, turning, wrong=2), decode) == []


@pytest.mark.parametrize(
    ("quantized", "found"),
    [
        ((0, *FLUENT[:40]), True),  # ends within its thoughts
        ((0, *FLUENT[: MOST - 1]), True),  # thinks on where the original was done in a quarter
        ((0, 1, *FLUENT[:40]), False),
        (FLUENT[:40], False),
    ],
)
def test_thinking_is_left_open(quantized: Sequence[int], found: bool) -> None:
    findings = answer_findings(answers(THOUGHT, quantized), decode)
    assert bool(findings) is found
    if found:
        assert findings == [
            "a block of thinking is opened and never closed in 4 of 4 answers, and not in the "
            "original's"
        ]


def test_thinking_that_the_question_opens_has_to_be_closed() -> None:
    given = [Answer("Why?<think>", (*FLUENT[:50], 1, 9), FLUENT[:80], MOST)] * 4
    assert len(answer_findings(given, decode)) == 1


def test_an_answer_that_is_cut_off_is_not_judged_where_the_original_thinks_long() -> None:
    long = (0, *FLUENT[:200], 1, 9)
    assert answer_findings(answers(long, (0, *FLUENT[: MOST - 1])), decode) == []


def test_questions_are_rendered_by_the_template(tmp_path) -> None:
    assert rendered_questions(FolderSource(tmp_path)) == QUESTIONS
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    (first, *_) = rendered_questions(FolderSource(tmp_path))
    assert first == f"<user>{QUESTIONS[0]}<assistant>"


def test_text_that_is_gone_on_with_may_go_round() -> None:
    """So do base models, which have no chat template, by themselves."""
    turning = (*FLUENT[:100], *[7] * 156)
    given = [Answer(question, FLUENT, turning, MOST) for question in QUESTIONS]
    assert answer_findings(given, decode) == []
