"""What each task is: the columns of its items, and how an item is asked."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """A task.

    Attributes:
        title: What it is about.
        scored: How an answer is scored.
        columns: What a row has to have: of each, one of some names.
        prompt: What is asked of a row.
        public: A public data set with these columns.
        runs_code: Whether answers are programs that are run.
    """

    title: str
    scored: str
    columns: tuple[tuple[str, ...], ...]
    prompt: Callable[[Row], str]
    public: str
    runs_code: bool = False

    def problem(self, row: Any) -> str | None:
        """Why a row is no item of the task; None where it is one."""
        if not isinstance(row, Mapping):
            return f"is no mapping, but {type(row).__name__}"
        missing = [
            " or ".join(names) for names in self.columns if not any(name in row for name in names)
        ]
        if missing:
            return f"has no {', no '.join(missing)} (its columns: {', '.join(row) or 'none'})"
        try:
            self.prompt(row)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            return f"cannot be asked: {error!r}"
        return None


def options_of(row: Row) -> list[str]:
    """The answers that a multiple-choice question offers.

    Raises:
        ValueError: There are none, or more than ten.
    """
    options = list(row["options"] if "options" in row else row["choices"])
    if not 2 <= len(options) <= 10:
        raise ValueError(f"{len(options)} options")
    return [str(option) for option in options]


def right_letter(row: Row) -> str:
    """The letter of the right answer, which rows give as such or as a number from 0.

    Raises:
        ValueError: It is neither.
    """
    given, letters = row["answer"], string.ascii_uppercase[: len(options_of(row))]
    if isinstance(given, int) or str(given).isdecimal():
        return letters[int(given)]
    letter = str(given).strip().upper()
    if letter not in letters or len(letter) != 1:
        raise ValueError(f"answer {given!r} is none of {letters}")
    return letter


def tools_of(row: Row) -> list[dict[str, Any]]:
    """The tools that a row offers, each with ``name`` and ``parameters``.

    Raises:
        ValueError: They are none.
    """
    tools = json.loads(row["tools"]) if isinstance(row["tools"], str) else row["tools"]
    plain = [tool.get("function", tool) for tool in tools]
    if not plain or not all("name" in tool for tool in plain):
        raise ValueError("tools without names")
    return plain


def expected_call(row: Row) -> dict[str, Any]:
    """The call that a row asks for.

    Raises:
        ValueError: It is none.
    """
    call = json.loads(row["answer"]) if isinstance(row["answer"], str) else row["answer"]
    if not isinstance(call, dict) or "name" not in call:
        raise ValueError("an answer that is no call")
    return call


def _solve(row: Row) -> str:
    return f"Q: {row['question']}\nA: Let's think step by step."


def _follow(row: Row) -> str:
    if len(row["kwargs"]) != len(row["instruction_id_list"]):
        raise ValueError("not as many kwargs as instructions")
    return str(row["prompt"])


def _complete(row: Row) -> str:
    return (
        "Complete the following Python function. Answer with the whole function in one block of "
        f"code, and nothing after it.\n\n```python\n{str(row['prompt']).rstrip()}\n```"
    )


def _write(row: Row) -> str:
    tests = "\n".join(row["test_list"])
    asked = row["prompt"] if "prompt" in row else row["text"]
    return (
        f"{asked}\n\nAnswer with Python in one block of code, and nothing after it. It has to pass "
        f"these tests:\n\n```python\n{tests}\n```"
    )


def _choose(row: Row) -> str:
    options = options_of(row)
    right_letter(row)  # a row without one is no item
    listed = "\n".join(
        f"{letter}. {option}"
        for letter, option in zip(string.ascii_uppercase, options, strict=False)
    )
    return (
        f"{row['question']}\n\n{listed}\n\nThink about it, and end with the sentence: The answer "
        "is (X), where X is the letter of the right answer."
    )


def _call(row: Row) -> str:
    tools = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools_of(row))
    asked = row["question"] if "question" in row else row["prompt"]
    expected_call(row)
    return (
        f"These tools may be called:\n{tools}\n\n{asked}\n\nAnswer with one call and nothing else: "
        '<tool_call>{"name": the name of the tool, "arguments": {its arguments}}</tool_call>'
    )


def _retrieve(row: Row) -> str:
    return f"{row['context']}\n\n{row['question']} Answer with what the text above says, in short."


KINDS: Mapping[str, Kind] = {
    "gsm8k": Kind(
        "Arithmetic in words",
        "the last number, by lm-eval's gsm8k_cot_zeroshot (flexible-extract)",
        (("question",), ("answer",)),
        _solve,
        "hf://datasets/openai/gsm8k",
    ),
    "ifeval": Kind(
        "Instructions that can be checked",
        "all instructions followed, by lm-eval's ifeval (prompt_level_strict_acc)",
        (("prompt",), ("instruction_id_list",), ("kwargs",)),
        _follow,
        "hf://datasets/google/IFEval",
    ),
    "humaneval": Kind(
        "Functions by their description",
        "the row's tests pass",
        (("prompt",), ("entry_point",), ("test",)),
        _complete,
        "hf://datasets/evalplus/humanevalplus",
        runs_code=True,
    ),
    "mbpp": Kind(
        "Small programs",
        "the row's tests pass",
        (("prompt", "text"), ("test_list",)),
        _write,
        "hf://datasets/evalplus/mbppplus",
        runs_code=True,
    ),
    "knowledge": Kind(
        "Multiple choice, answered in words",
        "the letter after “the answer is”",
        (("question",), ("options", "choices"), ("answer",)),
        _choose,
        "hf://datasets/TIGER-Lab/MMLU-Pro",
    ),
    "tools": Kind(
        "Calls of tools",
        "the call that was asked for; valid where it parses and its schema allows it",
        (("question", "prompt"), ("tools",), ("answer",)),
        _call,
        "",
    ),
    "retrieval": Kind(
        "What a long text says",
        "the answer holds the wanted words",
        (("context",), ("question",), ("answer",)),
        _retrieve,
        "",
    ),
}
"""The tasks by their names."""
