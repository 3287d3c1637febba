"""The texts that ship: that they are what their README says, and that templates can write them."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from quantlib.checkpoint.source import FolderSource
from quantlib.checks.recipe import parse_recipe
from quantlib.errors import InvalidInputError
from quantlib.steps.texts import windows_without_store
from quantlib.text.addresses import SHIPPED, Text
from quantlib.text.chat_template import ChatTemplate
from quantlib.text.documents import Tally, read_documents
from quantlib.text.files import local_file
from quantlib.text.places import SHIPPED_TEXTS, find_text

# Qwen3's in short: tools, calls, what they give, and reasoning where thinking is on.
TEMPLATE = """\
{%- if tools %}<|im_start|>tools {{ tools | tojson }}<|im_end|>{% endif %}
{%- for m in messages %}
{%- if loop.index0 and m.role == "system" %}{{ raise_exception("system comes first") }}{% endif %}
<|im_start|>{{ m.role }}
{% if m.role == "assistant" and enable_thinking %}<think>{{ m.reasoning_content }}</think>
{% endif %}{{ m.content + "" }}
{%- for c in m.tool_calls %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>
{%- endfor %}<|im_end|>
{% endfor %}"""
MADE = ("calibration", "evaluation")
KINDS = {"prose", "code", "math", "multilingual", "chat", "reasoning", "tools"}


def rows(name: str) -> list[dict]:
    lines = (SHIPPED_TEXTS / SHIPPED[name]).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def words_of(row: dict) -> str:
    said = [message["content"] for message in row.get("messages", [])]
    return "\n".join(
        [*said, row.get("instruction", ""), row.get("output", ""), row.get("text", "")]
    )


@pytest.mark.parametrize("name", MADE)
def test_every_row_is_written_by_a_template(tmp_path: Path, name: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    template, tally = ChatTemplate.of_model(FolderSource(tmp_path)), Tally()
    file = local_file(SHIPPED_TEXTS / SHIPPED[name])
    pieces = list(read_documents([file], None, template, tally, content="conversations"))
    assert not tally.left_out
    assert {piece.kind for piece in pieces} == KINDS
    written = "".join(piece.text for piece in pieces)
    assert "<think>" in written
    assert "<call>" in written
    assert "<|im_start|>tool\n" in written


@pytest.mark.parametrize("name", MADE)
def test_conversations_are_as_they_are_held(name: str) -> None:
    for row in rows(name):
        if "messages" not in row:
            assert row["instruction"].strip()
            assert row["output"].strip()
            continue
        roles = [message["role"] for message in row["messages"]]
        assert roles[-1] == "assistant"
        talk = roles[1:] if roles[0] == "system" else roles
        assert talk[0] == "user"
        follows = {
            "user": {"assistant"},
            "assistant": {"user", "tool"},
            "tool": {"tool", "assistant"},
        }
        assert all(after in follows[before] for before, after in pairwise(talk))
        offered = {tool["function"]["name"] for tool in row.get("tools", [])}
        calls = [c for m in row["messages"] for c in m.get("tool_calls", ())]
        assert {call["function"]["name"] for call in calls} <= offered
        answered = [m["tool_call_id"] for m in row["messages"] if m["role"] == "tool"]
        assert answered == [call["id"] for call in calls]


def test_kinds_come_in_turn(tiny_llama: Path) -> None:
    """A few windows are taken of the first rows: they are to hold more than one kind."""
    for name, kinds in (("calibration", 5), ("evaluation", 4)):
        section = {"dataset": f"shipped:{name}", "num_samples": 8, "sequence_length": 256}
        recipe = parse_recipe({"calibration": section})
        found = windows_without_store(recipe.calibration, FolderSource(tiny_llama))
        assert len(found.tokens_by_kind) >= kinds


def test_calibration_and_evaluation_share_nothing() -> None:
    """No line of some length, and no run of words within one, is in both."""

    def runs(name: str) -> set[tuple[str, ...]]:
        words = [words_of(row).split() for row in rows(name)]
        return {tuple(text[at : at + 16]) for text in words for at in range(len(text) - 15)}

    for first, second in (MADE, ("python-topics", "evaluation"), ("sqlite", "calibration")):
        assert not runs(first) & runs(second), (first, second)


def text_named(dataset: str) -> Text:
    return Text.of(parse_recipe({"calibration": {"dataset": dataset}}).calibration)


def test_a_text_that_ships_is_named() -> None:
    for name, file in SHIPPED.items():
        found = find_text(text_named(f"shipped:{name}"))
        assert list(found.sizes) == [file]
        assert found.origin == {"kind": "shipped", "name": name}
    default = find_text(Text.of(parse_recipe({}).validation))
    assert default.origin["name"] == "evaluation"
    with pytest.raises(InvalidInputError, match="give shipped:calibration, shipped:evaluation"):
        find_text(text_named("shipped:wikitext"))


def test_what_was_taken_from_others_has_its_licence_beside_it() -> None:
    page = (SHIPPED_TEXTS / "README.md").read_text(encoding="utf-8")
    licences = sorted(path.name for path in SHIPPED_TEXTS.glob("LICENSE.*"))
    assert len(licences) == 4
    for name in [*licences, *SHIPPED.values()]:
        assert name in page
