"""From an answer to what it is worth. Text only: nothing here runs what a model wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_THOUGHT = "</think>"
_FENCED = re.compile(r"```[ \t]*[\w+-]*[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_LETTER = re.compile(r"(?i:answer is)[:\s]*[(*]*([A-J])\b")
_LONE_LETTER = re.compile(r"^\W*([A-J])(?:[.):*]|\s*$)", re.MULTILINE)
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
}


def answer_part(text: str) -> str:
    """What follows the thinking of an answer; all of it where it closes none."""
    return text.rpartition(_THOUGHT)[2]


def closes_thought(text: str) -> bool:
    """Whether an answer closes a block of thinking, which templates may have opened."""
    return _THOUGHT in text


def opens_thought(text: str) -> bool:
    """Whether an answer or a prompt opens a block of thinking and leaves it open."""
    return text.rfind("<think>") > text.rfind(_THOUGHT)


def chosen_letter(text: str) -> str | None:
    """The letter that an answer settles on; None where it names none.

    What follows the last "answer is" decides, else the first line that begins with a letter.
    """
    if found := _LETTER.findall(text):
        return str(found[-1])
    lone = _LONE_LETTER.search(text)
    return lone[1] if lone else None


def code_of(text: str) -> str:
    """The program in an answer: its first fenced block, else all of it."""
    fenced = _FENCED.search(text)
    return fenced[1] if fenced else text


def holds(text: str, wanted: str) -> bool:
    """Whether an answer holds a text, in whatever case, and not as a part of a longer word."""
    pattern = rf"(?<!\w){re.escape(wanted.strip())}(?!\w)"
    return re.search(pattern, text, re.IGNORECASE) is not None


def call_of(text: str) -> dict[str, Any] | None:
    """The tool call in an answer: a mapping with ``name`` and ``arguments``; None where none is.

    Looked for between ``<tool_call>`` tags, in a fenced block, and then in all of the text.
    """
    places = [found[1] for found in (_CALL.search(text), _FENCED.search(text)) if found]
    for place in (*places, text):
        start = place.find("{")
        if start < 0:
            continue
        try:
            value, _ = json.JSONDecoder().raw_decode(place[start:])
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            arguments = value.get("arguments", value.get("parameters", {}))
            return {"name": value["name"], "arguments": arguments}
    return None


def is_valid_call(call: Mapping[str, Any] | None, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a call names a tool that there is, with arguments that its schema allows.

    Args:
        call: What :func:`call_of` found.
        tools: Each with ``name`` and ``parameters``, a JSON schema of an object.
    """
    tool = next((each for each in tools if call and each["name"] == call["name"]), None)
    if call is None or tool is None or not isinstance(call["arguments"], dict):
        return False
    schema = tool.get("parameters", {})
    properties, arguments = schema.get("properties", {}), call["arguments"]
    if not set(schema.get("required", ())) <= arguments.keys() <= properties.keys():
        return False
    return all(_fits(value, properties[name]) for name, value in arguments.items())


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    expected = _TYPES.get(str(schema.get("type")), object)
    if isinstance(value, bool) and expected is not bool and expected is not object:
        return False
    return isinstance(value, expected) and ("enum" not in schema or value in schema["enum"])


def is_expected_call(call: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Whether a call is the one that was asked for; texts are compared without case."""
    return _folded(call) == _folded(
        {"name": expected["name"], "arguments": expected.get("arguments", {})}
    )


def _folded(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(value.casefold().split())
    if isinstance(value, Mapping):
        return {name: _folded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_folded(each) for each in value]
    return value
