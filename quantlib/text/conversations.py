"""Conversations: messages, in the spellings that data sets have them in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantlib.text.formats import RowError
from quantlib.text.pictures import Picture, arranged, is_image_part

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""Roles by the names that ShareGPT's descendants give them; others stay as they are."""

_REASONING = ("reasoning_content", "reasoning", "thinking")
"""What templates call the reasoning before an answer: Qwen's and DeepSeek's, vLLM's own and
gpt-oss's. A message that has it by one name is given all of them."""

_THINKING = ("enable_thinking", "thinking")
"""What templates call its switch: Qwen's, GLM's and SmolLM's; DeepSeek's and Granite's."""


@dataclass(frozen=True)
class Conversation:
    """Messages, with the tools that the model may call.

    Attributes:
        messages: Each with ``role``, ``content`` and whatever else templates know.
        tools: JSON schemas of functions; None where there are none.
        pictures: Its images; their places are parts of messages, ``{"type": "image"}``.
        variables: What else templates are told, such as ``enable_thinking``.
    """

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    pictures: tuple[Picture, ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def uses_tools(self) -> bool:
        """Whether tools are offered, called, or answer."""
        return bool(self.tools) or any(
            message["role"] == "tool" or message.get("tool_calls") for message in self.messages
        )


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) for item in value)
        and bool({"role", "from"} & value[0].keys())
    )


def conversation_of(messages: list[dict[str, Any]], row: Mapping[str, Any]) -> Conversation:
    """A conversation from its messages and the columns beside them.

    Args:
        messages: As the row has them.
        row: The columns: ``system``, ``tools``, ``chat_template_kwargs``, and ``images`` or
            ``image``.

    Raises:
        RowError: A message is none, or an image.
    """
    plain, pictures = arranged([_message(message) for message in messages], row)
    system = row.get("system")
    if isinstance(system, str) and system.strip() and plain[0]["role"] != "system":
        plain.insert(0, {"role": "system", "content": system})
    return Conversation(
        plain, _tools(row.get("tools")), pictures, _variables(row.get("chat_template_kwargs"))
    )


def _message(message: dict[str, Any]) -> dict[str, Any]:
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if not isinstance(role, str) or not role:
        raise RowError("a message has no role")
    if isinstance(content, list):
        content = _parts(content) if any(map(is_image_part, content)) else _joined(content)
    calls = message.get("tool_calls")
    if not isinstance(content, (str, list)) and (content is not None or not calls):
        what = "null" if content is None else type(content).__name__
        raise RowError("a message has no text", f"its content is {what}")
    others = {
        name: value
        for name, value in message.items()
        if name not in ("role", "from", "content", "value") and value is not None
    }
    if isinstance(calls, list):
        others["tool_calls"] = [_call(call) for call in calls]
    if reasoning := next((others[name] for name in _REASONING if others.get(name)), None):
        others |= dict.fromkeys(_REASONING, reasoning)
    return {"role": _ROLES.get(role, role), "content": content} | others


def _joined(parts: list[Any]) -> str:
    return "".join(map(_text_of, parts))


def _parts(parts: list[Any]) -> list[dict[str, Any]]:
    """The parts of a message with images."""
    return [
        part if is_image_part(part) else {"type": "text", "text": _text_of(part)} for part in parts
    ]


def _text_of(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    if not isinstance(text, str):
        kind = part.get("type", "?") if isinstance(part, dict) else type(part).__name__
        raise RowError("a message holds more than text", str(kind))
    return text


def _call(call: Any) -> Any:
    """A tool call with its arguments as a mapping, which templates expect, and not as JSON."""
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        arguments = _parsed(function["arguments"])
        if isinstance(arguments, dict):
            return call | {"function": function | {"arguments": arguments}}
    return call


def _variables(value: Any) -> dict[str, Any]:
    """What templates are told of a row; thinking is switched by either of two names."""
    found = _parsed(value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        return {}
    switch = next((found[name] for name in _THINKING if isinstance(found.get(name), bool)), None)
    return dict(found) if switch is None else dict.fromkeys(_THINKING, switch) | found


def _tools(value: Any) -> list[Any] | None:
    tools = _parsed(value) if isinstance(value, str) else value
    return tools if isinstance(tools, list) and tools else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def plain_text(conversation: Conversation) -> str:
    """What is said in a conversation, for models that have no template."""
    return "\n\n".join(
        message["content"] for message in conversation.messages if message["content"]
    )
