from __future__ import annotations

import pytest

from quantlib.tasks import scoring

TOOLS = [
    {
        "name": "set_timer",
        "parameters": {
            "properties": {"minutes": {"type": "integer"}, "unit": {"enum": ["s", "min"]}},
            "required": ["minutes"],
        },
    }
]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (B).", "B"),
        ("It may be A, but the answer is C", "C"),
        ("The answer is (A). No: the answer is (D).", "D"),
        ("B. Rome", "B"),
        ("A good question, and hard", None),
        ("I do not know", None),
        ("The answer is a planet", None),
    ],
)
def test_the_letter_that_an_answer_settles_on(text: str, letter: str | None) -> None:
    assert scoring.chosen_letter(text) == letter


def test_what_is_thought_is_no_answer() -> None:
    assert scoring.answer_part("<think>B or C</think>\nThe answer is (A).").strip() == (
        "The answer is (A)."
    )
    assert scoring.answer_part("no thought") == "no thought"
    assert scoring.closes_thought("it was opened by the template</think>yes")
    assert not scoring.closes_thought("<think>on and on")


def test_code_is_the_first_block_or_everything() -> None:
    assert scoring.code_of("Here:\n```python\nx = 1\n```\nand\n```\ny\n```") == "x = 1"
    assert scoring.code_of("x = 2") == "x = 2"
    assert scoring.code_of("```py\nx = 3") == "x = 3", "a block that was cut off"


@pytest.mark.parametrize(
    ("text", "valid", "right"),
    [
        ('<tool_call>{"name": "set_timer", "arguments": {"minutes": 5}}</tool_call>', True, True),
        ('```json\n{"name": "set_timer", "arguments": {"minutes": 5}}\n```', True, True),
        ('Sure! {"name": "set_timer", "parameters": {"minutes": 5}}', True, True),
        ('{"name": "set_timer", "arguments": {"minutes": 6}}', True, False),
        ('{"name": "set_timer", "arguments": {"minutes": "5"}}', False, False),
        ('{"name": "set_timer", "arguments": {"minutes": true}}', False, False),
        ('{"name": "set_timer", "arguments": {"minutes": 5, "unit": "h"}}', False, False),
        ('{"name": "set_timer", "arguments": {}}', False, False),
        ('{"name": "set_timer", "arguments": {"minutes": 5, "loud": 1}}', False, False),
        ('{"name": "set_alarm", "arguments": {"minutes": 5}}', False, False),
        ("set_timer(5)", False, False),
    ],
)
def test_calls_are_held_against_their_schema(text: str, valid: bool, right: bool) -> None:
    call = scoring.call_of(text)
    assert scoring.is_valid_call(call, TOOLS) is valid
    expected = {"name": "set_timer", "arguments": {"minutes": 5}}
    assert (valid and scoring.is_expected_call(call or {}, expected)) is right


def test_words_are_found_whole() -> None:
    assert scoring.holds("It is 4182.", "4182")
    assert not scoring.holds("It is 41825.", "4182")
    assert scoring.holds("in the OLD mill", "old mill")
