"""Tasks made ready for a model: their items, how they are asked, and how much it has to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlib.checkpoint.source import FileSource
from quantlib.errors import InvalidInputError, Problem
from quantlib.runtime.foreign_json import parse_mapping
from quantlib.task_section import TasksSection
from quantlib.tasks.kinds import KINDS
from quantlib.text.chat_template import BrokenTemplateError, ChatTemplate
from quantlib.text.conversations import Conversation
from quantlib.text.formats import RowError
from quantlib.text.tokenizer import load_tokenizer

_TEMPLATE_TOKENS = 64
"""Room for what a server's template writes that ours does not: the opening of an answer."""

_STEP_TOKENS = 256


@dataclass(frozen=True)
class Prepared:
    """Tasks that a model can be given.

    Attributes:
        items: By task.
        chat: Whether the model is asked through its chat template; one without is given the bare
            text to go on with.
        context: Tokens that the longest item and its answer take.
        prompt_tokens: Of all items together.
        answer_tokens: The most that all answers together take.
    """

    items: Mapping[str, Sequence[Mapping[str, Any]]]
    chat: bool
    context: int
    prompt_tokens: int
    answer_tokens: int

    def write(self, task: str, path: Path) -> None:
        """Writes the items of a task, one JSON object a line."""
        lines = (json.dumps(item, ensure_ascii=True) for item in self.items[task])
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def prepare(
    section: TasksSection, items: Mapping[str, Sequence[Mapping[str, Any]]], source: FileSource
) -> Prepared:
    """Holds tasks against a model, without running it.

    Args:
        section: Of the recipe.
        items: Of each task.
        source: The model, for its tokenizer, its template and its config.

    Raises:
        InvalidInputError: Its template does not render an item, or an item and its answer are
            longer than what it reads; all problems at once.
    """
    template, tokenizer = ChatTemplate.of_model(source), load_tokenizer(source)
    reads = _window(source)
    longest, read, answered, problems = 0, 0, 0, []
    for task in section.run:
        rendered = []
        for number, item in enumerate(items[task.name], start=1):
            try:
                rendered.append(_rendered(template, KINDS[task.name].prompt(item)))
            except (RowError, BrokenTemplateError) as error:
                problems.append(Problem(f"tasks.{task.name}: item {number}", str(error)))
                break
        else:
            lengths = [len(found.ids) for found in tokenizer.encode_batch(rendered)]
            needed = max(lengths) + task.tokens + _TEMPLATE_TOKENS
            if reads is not None and needed > reads:
                problems.append(
                    Problem(
                        f"tasks.{task.name}",
                        f"takes {needed} tokens, with answers of {task.tokens}, and the model "
                        f"reads {reads}",
                        "set max_tokens of the task, or give it shorter items",
                    )
                )
            longest, read = max(longest, needed), read + sum(lengths)
            answered += task.tokens * len(lengths)
    if section.loads.concurrency:
        needed = section.loads.input_tokens + section.loads.output_tokens + _TEMPLATE_TOKENS
        longest = max(longest, needed)
        if reads is not None and needed > reads:
            what = f"take {needed} tokens, and the model reads {reads}"
            problems.append(Problem("tasks.loads", what, "set input_tokens or output_tokens"))
    if problems:
        raise InvalidInputError(problems)
    context = -(-longest // _STEP_TOKENS) * _STEP_TOKENS
    context = context if reads is None else min(context, reads)
    return Prepared(items, template is not None, context, read, answered)


def _rendered(template: ChatTemplate | None, prompt: str) -> str:
    if template is None:
        return prompt
    return template.render(Conversation([{"role": "user", "content": prompt}]))


def _window(source: FileSource) -> int | None:
    """Tokens that a model reads, by its config; None where that does not say."""
    config = parse_mapping(bytes(source.read("config.json")), "config.json", infinite=True)
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and isinstance(part.get("max_position_embeddings"), int):
            return int(part["max_position_embeddings"])
    return None
