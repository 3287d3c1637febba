"""The chat template of a model, which writes conversations as text."""

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
from quantlib.text.conversations import Conversation
from quantlib.text.formats import RowError

_TODAY = datetime(2024, 7, 26)
"""What templates that write a date are told: the same text on every day."""

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
TEMPLATE_FILES = (*_TEMPLATE_FILES, "tokenizer_config.json", "special_tokens_map.json")
"""The files of a model that decide how conversations are written."""


_TEMPLATE = "<template>"
"""The file that jinja names for the lines of a template."""


class _Refusal(jinja2.TemplateError):
    """The template says itself that it does not write such a conversation."""


class BrokenTemplateError(Exception):
    """A chat template failed, as a program does: the message says how, and at which line."""


@dataclass(frozen=True)
class ChatTemplate:
    """How a model writes conversations.

    Attributes:
        default: Writes most of them.
        with_tools: Writes those with tools, where the model has a template of its own for them.
        special_tokens: ``bos_token`` and the like, by these names.
        knows_tools: Whether tools and their calls are written.
    """

    default: jinja2.Template
    with_tools: jinja2.Template | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    knows_tools: bool = True

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
        return cls(
            compiled["default"],
            compiled.get("tool_use"),
            special_tokens(source),
            any("tool" in text for text in templates.values()),
        )

    def render(self, conversation: Conversation) -> str:
        """A conversation as text, with the special tokens that belong to it.

        Raises:
            RowError: It is none that the template writes.
            BrokenTemplateError: The template is wrong, or the conversation lacks what it takes for
                granted.
        """
        if conversation.uses_tools and not self.knows_tools:
            raise RowError("has tools, and the chat template writes none")
        template = self.default
        if conversation.tools and self.with_tools is not None:
            template = self.with_tools
        variables = {
            **conversation.variables,
            **self.special_tokens,
            "messages": conversation.messages,
            "tools": conversation.tools,
            "documents": None,
            "add_generation_prompt": False,
        }
        try:
            return template.render(variables)
        except _Refusal as error:
            raise RowError("the chat template refuses it", str(error)) from None
        except Exception as error:  # the model's own program: any error is possible
            what = f"{type(error).__name__}: {error}"
            raise BrokenTemplateError(
                f"line {_line_of(error)} of the chat template: {what}"
            ) from None


def _line_of(error: BaseException) -> int | str:
    """The template's line that an error comes from, the innermost of them."""
    found: int | str = "?"
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == _TEMPLATE:
            found = traceback.tb_lineno
        traceback = traceback.tb_next
    return found


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
        raise _Refusal(message)

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


def special_tokens(source: FileSource) -> dict[str, str]:
    """``bos_token`` and the like, as the model's files name them."""
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
