"""What a row of a text is: text, or a conversation, by its fields."""

from __future__ import annotations

import json
from typing import Any

from quantlib.text.conversations import Conversation, conversation_of, is_conversation
from quantlib.text.formats import Fault, RowError
from quantlib.text.pictures import TextWithImages, with_pictures

Recognized = tuple[str, str | TextWithImages | Conversation]
"""What a row was recognized as, and what it holds."""

_SHAPES = (
    ("text",),
    ("messages",),
    ("conversations",),
    ("instruction", "output"),
    ("prompt", "completion"),
)
"""The fields that make a row something; the first of these counts."""

_MOST_NAMED = 8


def recognize(row: Any, field: str | None) -> Recognized | Fault:
    """What a row holds.

    Args:
        row: As its file holds it.
        field: The field to take; None for the first of those that are known.
    """
    try:
        if isinstance(row, str):
            return "strings", row
        if is_conversation(row):
            return "messages", conversation_of(row, {})
        if not isinstance(row, dict):
            return Fault("is no record with fields", _name(row))
        if field is not None:
            return _field(row, field)
        present = [shape for shape in _SHAPES if all(name in row for name in shape)]
        for shape in present:
            if all(row[name] is not None for name in shape):
                if len(shape) == 1:
                    return _field(row, shape[0])
                return "/".join(shape), _exchange(row, *shape)
        if present:
            return Fault(f"null in {'/'.join(present[0])}")
        return Fault("has none of the fields that are known", _fields(row))
    except RowError as error:
        return error.fault


def _field(row: dict[str, Any], field: str) -> Recognized | Fault:
    if field not in row:
        return Fault(f"has no field {field!r}", _fields(row))
    value = row[field]
    if value is None:
        return Fault(f"null in {field}")
    if isinstance(value, str) and value.lstrip().startswith("["):
        # Tables have no lists: they hold conversations as JSON.
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = None
        value = parsed if is_conversation(parsed) else value
    if isinstance(value, str):
        return field, with_pictures(value, row) or value
    if is_conversation(value):
        return field, conversation_of(value, row)
    return Fault(f"{field} is no text and no list of messages", _name(value))


def _exchange(row: dict[str, Any], first: str, last: str) -> Conversation:
    """A question and its answer: Alpaca's columns, or a prompt and its completion."""
    asked, answer = row[first], row[last]
    if is_conversation(asked) and is_conversation(answer):
        return conversation_of([*asked, *answer], row)
    for name, value in ((first, asked), (last, answer)):
        if not isinstance(value, str):
            raise RowError(f"{name} is no text", _name(value))
        if not value.strip():
            raise RowError(f"{name} is empty")
    more = row.get("input")
    if first == "instruction" and isinstance(more, str) and more.strip():
        asked = f"{asked}\n\n{more}"
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return conversation_of(messages, row)


def _fields(row: dict[str, Any]) -> str:
    names = [str(name) for name in row]
    more = len(names) - _MOST_NAMED
    listed = ", ".join(names[:_MOST_NAMED]) or "none"
    return f"fields: {listed}" + (f" and {more} more" if more > 0 else "")


def _name(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
