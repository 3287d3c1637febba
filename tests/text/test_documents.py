import json
from pathlib import Path

import jinja2
import pyarrow as pa
import pytest
from pyarrow import parquet

from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError
from quantlib.text.chat_template import ChatTemplate
from quantlib.text.formats import PIECE_CHARACTERS

from .conftest import Read

GOOD = [f"Document {number} speaks of the number {number}." for number in range(6)]
TEMPLATE = ChatTemplate(
    jinja2.Template("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
)


def write_rows(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(pieces: list) -> list[str]:
    return [piece.text for piece in pieces]


def test_bad_rows_are_left_out_counted_and_shown(tmp_path: Path, read: Read) -> None:
    bad = ["half an emoji \ud83d", None, "", " \n", 3, ["a"], {"role": "user"}]
    rows = [{"text": text} for text in [GOOD[0], *bad, *GOOD[1:]]]
    path = write_rows(tmp_path / "a.jsonl", [*rows, {"body": "x"}, 7])
    path.write_bytes(path.read_bytes() + b'{"text": "\xff"}\n{"text"\n')
    pieces, tally = read(path)
    assert texts(pieces) == GOOD
    assert tally.used == {"text": 6}
    assert tally.left_out == {
        "is no valid Unicode": 2,
        "null in text": 1,
        "empty": 2,
        "text is no text and no list of messages": 3,
        "has none of the fields that are known": 1,
        "is no record with fields": 1,
        "is no JSON": 1,
    }
    assert tally.rows == 17
    assert tally.examples == [
        "a.jsonl row 2: is no valid Unicode",
        "a.jsonl row 3: null in text",
        "a.jsonl row 4: empty",
    ]
    assert tally.in_words().startswith("17 rows read: 6 as text; 11 left out: 3 text is no text")


def test_a_mark_before_a_text_is_no_part_of_it(tmp_path: Path, read: Read) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "\ufeff" + GOOD[0]}])
    assert texts(read(path)[0]) == GOOD[:1]
    path.with_suffix(".txt").write_text("\ufeff" + GOOD[0], encoding="utf-8")
    assert texts(read(path.with_suffix(".txt"))[0]) == GOOD[:1]


@pytest.mark.parametrize(
    ("row", "kind", "text"),
    [
        ({"text": "a", "messages": None}, "text", "a"),
        ("a", "strings", "a"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages", "<user>a"),
        ([{"role": "user", "content": "a"}], "messages", "<user>a"),
        ({"text": None, "messages": [{"role": "user", "content": "a"}]}, "messages", "<user>a"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "conversations",
            "<user>a<assistant>b",
        ),
        (
            {"instruction": "a", "input": "b", "output": "c", "system": "s"},
            "instruction/output",
            "<system>s<user>a\n\nb<assistant>c",
        ),
        (
            {"instruction": "a", "input": "", "output": "c"},
            "instruction/output",
            "<user>a<assistant>c",
        ),
        ({"prompt": "a", "completion": "b"}, "prompt/completion", "<user>a<assistant>b"),
        (
            {
                "prompt": [{"role": "user", "content": "a"}],
                "completion": [{"role": "assistant", "content": "b"}],
            },
            "prompt/completion",
            "<user>a<assistant>b",
        ),
        ({"messages": '[{"role": "user", "content": "a"}]'}, "messages", "<user>a"),
    ],
)
def test_rows_are_recognized(tmp_path: Path, read: Read, row: object, kind: str, text: str) -> None:
    pieces, tally = read(write_rows(tmp_path / "a.jsonl", [row]), template=TEMPLATE)
    assert texts(pieces) == [text]
    assert tally.used == {kind: 1}
    assert pieces[0].plain == (kind in ("text", "strings"))
    assert ("chat template" in tally.in_words()) == (not pieces[0].plain)


def test_a_field_is_chosen(tmp_path: Path, read: Read) -> None:
    rows = [{"text": "a", "body": "b", "chosen": [{"role": "user", "content": "c"}]}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    assert texts(read(path, field="body")[0]) == ["b"]
    assert texts(read(path, field="chosen", template=TEMPLATE)[0]) == ["<user>c"]
    pieces, tally = read(path, field="none")
    assert not pieces
    assert tally.examples == ["a.jsonl row 1: has no field 'none' (fields: text, body, chosen)"]


def test_conversations_in_parquet_and_tables(tmp_path: Path, read: Read) -> None:
    messages = [[{"role": "user", "content": text}] for text in GOOD]
    parquet.write_table(pa.table({"messages": [*messages, None]}), tmp_path / "a.parquet")
    pieces, tally = read(tmp_path / "a.parquet", template=TEMPLATE)
    assert texts(pieces) == [f"<user>{text}" for text in GOOD]
    assert tally.left_out == {"null in messages": 1}
    quoted = json.dumps(messages[0]).replace('"', '""')
    (tmp_path / "a.csv").write_text(f'messages\n"{quoted}"\n')
    assert texts(read(tmp_path / "a.csv", template=TEMPLATE)[0]) == [f"<user>{GOOD[0]}"]


def test_without_a_template_messages_follow_on_each_other(tmp_path: Path, read: Read) -> None:
    rows = [{"prompt": "a", "completion": "b"}]
    pieces, tally = read(write_rows(tmp_path / "a.jsonl", rows))
    assert texts(pieces) == ["a\n\nb"]
    assert pieces[0].plain
    assert "one below the other, without roles" in tally.in_words()


CONTENTS = [{"text": GOOD[0]}, {"messages": [{"role": "user", "content": "a"}], "kind": "math"}]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("auto", [GOOD[0], "<user>a"]),
        ("text", [GOOD[0], "a"]),
        ("conversations", ["<user>a"]),
    ],
)
def test_what_is_read_as_what(tmp_path: Path, read: Read, content: str, wanted: list) -> None:
    path = write_rows(tmp_path / "a.jsonl", CONTENTS)
    (tmp_path / "b.txt").write_text(GOOD[1])
    pieces, tally = read(path, tmp_path / "b.txt", template=TEMPLATE, content=content)
    if content == "conversations":
        assert tally.left_out == {"no conversation, which alone is asked for": 2}
    else:
        wanted = [*wanted, GOOD[1]]
    assert texts(pieces) == wanted


def test_kinds_are_what_rows_call_theirs(tmp_path: Path, read: Read) -> None:
    path = write_rows(tmp_path / "a.jsonl", [*CONTENTS, {"text": GOOD[1], "kind": 3}])
    assert [piece.kind for piece in read(path)[0]] == ["text", "math", "text"]


def test_what_a_template_refuses_is_left_out(tmp_path: Path, read: Read) -> None:
    source = FolderSource(tmp_path)
    refusing = "{% if messages | length == 1 %}{{ raise_exception('alone') }}{% endif %}two"
    (tmp_path / "chat_template.jinja").write_text(refusing)
    rows = [{"messages": [{"role": "user", "content": "a"}] * count} for count in (1, 2)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    pieces, tally = read(path, template=ChatTemplate.of_model(source))
    assert texts(pieces) == ["two"]
    assert tally.examples == ["a.jsonl row 1: the chat template refuses it (alone)"]


def test_a_template_that_fails_refuses_the_text(tmp_path: Path, read: Read) -> None:
    failing = ChatTemplate(jinja2.Template("{{ 1 / (messages | length - 1) }}"))
    rows = [{"messages": [{"role": "user", "content": "a"}] * count} for count in (2, 1)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(InvalidInputError) as refused:
        read(path, template=failing)
    (problem,) = refused.value.problems
    assert problem.where == "a.jsonl row 2"
    assert "line 1 of the chat template: ZeroDivisionError: division by zero" in problem.what
    assert "content: text" in problem.remedy
    assert texts(read(path, template=failing, content="text")[0]) == ["a\n\na", "a"]


def test_a_plain_text_is_one_document_in_pieces(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "a.txt"
    path.write_text("some words " * 20_000)
    pieces, tally = read(path)
    assert "".join(texts(pieces)) == "some words " * 20_000
    assert len(pieces) > 2
    assert [piece.opens for piece in pieces] == [True, *[False] * (len(pieces) - 1)]
    assert [piece.closes for piece in pieces] == [*[False] * (len(pieces) - 1), True]
    assert tally.used == {"plain text": 1}
    path.write_text(" \n")
    assert read(path)[1].left_out == {"empty": 1}


def test_a_piece_that_is_no_text_is_left_out_alone(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"word " * PIECE_CHARACTERS + b"\xff" + b" word" * PIECE_CHARACTERS)
    pieces, tally = read(path)
    assert tally.left_out == {"is no valid Unicode": 1}
    assert tally.used == {"plain text": 1}
    assert sum(map(len, texts(pieces))) > 9 * PIECE_CHARACTERS - 10
    path.write_bytes("Ä".encode("latin-1") * 10)
    assert read(path)[1].left_out == {"is no valid Unicode": 1}
