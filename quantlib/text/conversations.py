"""Conversations, and the chat template of a model that writes them as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quantlib.checkpoint.source import FileSource
from quantlib.errors import InvalidInputError
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

_TODAY = datetime(2024, 7, 26)
"""What templates that write a date are told: the same text on every day."""

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
TEMPLATE_FILES = (*_TEMPLATE_FILES, "tokenizer_config.json", "special_tokens_map.json")
"""The files of a model that decide how conversations are written."""


@dataclass(frozen=True)
class Conversation:
    """Messages, with the tools that the model may call.

    Attributes:
        messages: Each with ``role``, ``content`` and whatever else templates know.
        tools: JSON schemas of functions; None where there are none.
        pictures: Its images; their places are parts of messages, ``{"type": "image"}``.
    """

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    pictures: tuple[Picture, ...] = ()


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
        row: The columns: ``system``, ``tools``, and ``images`` or ``image``.

    Raises:
        RowError: A message is none, or an image.
    """
    plain, pictures = arranged([_message(message) for message in messages], row)
    system = row.get("system")
    if isinstance(system, str) and system.strip() and plain[0]["role"] != "system":
        plain.insert(0, {"role": "system", "content": system})
    return Conversation(plain, _tools(row.get("tools")), pictures)


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


def _tools(value: Any) -> list[Any] | None:
    tools = _parsed(value) if isinstance(value, str) else value
    return tools if isinstance(tools, list) and tools else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class ChatTemplate:
    """How a model writes conversations.

    Attributes:
        default: Writes most of them.
        with_tools: Writes those with tools, where the model has a template of its own for them.
        special_tokens: ``bos_token`` and the like, by these names.
    """

    default: jinja2.Template
    with_tools: jinja2.Template | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_model(cls, source: FileSource) -> ChatTemplate | None:
        """The template of a model; None where it has none.

        Raises:
            InvalidInputError: It is no template.
        """
        where, templates = _templates_of(source)
        if "default" not in templates:
            return None
        environment = _environment()
        try:
            compiled = {
                name: environment.from_string(text)
                for name, text in templates.items()
                if name in ("default", "tool_use")
            }
        except (jinja2.TemplateError, RecursionError) as error:
            raise InvalidInputError.one(where, f"its chat template is none: {error}") from None
        return cls(compiled["default"], compiled.get("tool_use"), _special_tokens(source))

    def render(self, conversation: Conversation) -> str:
        """A conversation as text, with the special tokens that belong to it.

        Raises:
            RowError: The template refuses it.
        """
        template = self.default
        if conversation.tools and self.with_tools is not None:
            template = self.with_tools
        try:
            return template.render(
                messages=conversation.messages,
                tools=conversation.tools,
                documents=None,
                add_generation_prompt=False,
                **self.special_tokens,
            )
        except Exception as error:  # the model's own program: any error is possible
            raise RowError("the chat template refuses it", str(error)) from None


def plain_text(conversation: Conversation) -> str:
    """What is said in a conversation, for models that have no template."""
    return "\n\n".join(
        message["content"] for message in conversation.messages if message["content"]
    )


class _Generation(jinja2.ext.Extension):
    """``{% generation %}``, which marks what an assistant says: its content as it is."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 has it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """What templates are written for: the environment of transformers' apply_chat_template."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = _TODAY.strftime
    return environment


def _templates_of(source: FileSource) -> tuple[str, dict[str, str]]:
    """Templates by name, and the file that they are in."""
    names = source.names()
    for name in (*_TEMPLATE_FILES, "tokenizer_config.json"):
        if name not in names:
            continue
        if name.endswith(".jinja"):
            text = bytes(source.read(name)).decode("utf-8", errors="replace")
            return source.describe(name), {"default": text}
        template = _json_of(source, name).get("chat_template")
        if isinstance(template, str):
            return source.describe(name), {"default": template}
        if isinstance(template, list):
            named = {
                each.get("name"): each.get("template")
                for each in template
                if isinstance(each, dict)
            }
            return source.describe(name), {
                key: text
                for key, text in named.items()
                if isinstance(key, str) and isinstance(text, str)
            }
    return "", {}


def _special_tokens(source: FileSource) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        entries = _json_of(source, name)
        for key in _SPECIAL_TOKENS:
            value = entries.get(key)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[key] = text
    return found


def _json_of(source: FileSource, name: str) -> dict[str, Any]:
    if name not in source.names():
        return {}
    try:
        value = json.loads(bytes(source.read(name)))
    except (ValueError, RecursionError) as error:
        raise InvalidInputError.one(source.describe(name), f"is no JSON: {error}") from None
    return value if isinstance(value, dict) else {}
