import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from quantlib.errors import InvalidInputError
from quantlib.text.files import local_file
from quantlib.text.formats import PIECE_CHARACTERS, Fault, in_pieces, kind_of, read_rows

ROWS = [
    {"text": f"Row {number}, with a “quote”,\nand a second line.", "n": 1} for number in range(200)
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def write(path: Path, kind: str) -> None:
    """Writes the rows as a kind of file, by its suffix without a compression."""
    match kind:
        case "jsonl":
            path.write_text(LINES)
        case "json":
            path.write_text(json.dumps(ROWS, indent=1))
        case "csv":
            quoted = (row["text"].replace('"', '""') for row in ROWS)
            path.write_text("text,n\n" + "".join(f'"{text}",1\n' for text in quoted))
        case "parquet":
            parquet.write_table(pa.table({"text": [row["text"] for row in ROWS]}), path)


def compress(path: Path, suffix: str) -> Path:
    packed = path.with_name(path.name + suffix)
    if suffix == ".gz":
        packed.write_bytes(gzip.compress(path.read_bytes()))
    else:
        with pa.CompressedOutputStream(str(packed), "zstd") as stream:
            stream.write(path.read_bytes())
    return packed


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_gives_the_same_rows(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"a.{kind}"
    write(path, kind)
    if suffix:
        path = compress(path, suffix)
    rows = list(read_rows(local_file(path)))
    assert [number for number, _ in rows] == list(range(1, 201))
    assert [row["text"] for _, row in rows] == [row["text"] for row in ROWS]


def test_kinds_are_known_by_name() -> None:
    assert kind_of("A.JSONL") == "jsonl"
    assert kind_of("data/train.Json.GZ") == "json"
    assert kind_of("a.txt.zst") == "txt"
    assert kind_of("a.gz") is kind_of("a.md") is kind_of("parquet") is None


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_byte_order_marks_and_line_ends_of_windows(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(start + LINES.replace("\n", "\r\n").encode())
    assert [row for _, row in read_rows(local_file(path))] == ROWS
    path.write_bytes(LINES.encode("utf-16"))
    assert [row for _, row in read_rows(local_file(path))] == ROWS


def test_lines_that_are_no_json_are_faults_of_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n\n{"text": "b"}')
    rows = dict(read_rows(local_file(path)))
    assert rows[1] == {"text": "a"}
    assert isinstance(rows[2], Fault)
    assert rows[2].reason == "is no JSON"
    assert rows[4] == {"text": "b"}


def test_json_may_hold_one_row_behind_the_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(LINES)
    assert [row for _, row in read_rows(local_file(path))] == ROWS
    path.write_text("")
    assert not list(read_rows(local_file(path)))
    path.write_text("[]")
    assert not list(read_rows(local_file(path)))


def test_a_long_row_in_a_list_of_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [{"text": "x" * 5 * PIECE_CHARACTERS}, {"text": "short"}]
    path.write_text(json.dumps(rows))
    assert [row for _, row in read_rows(local_file(path))] == rows


def test_tables_with_other_delimiters_and_ragged_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text;n\none, two;1\nthree\n")
    first, second = (row for _, row in read_rows(local_file(path)))
    assert first == {"text": "one, two", "n": "1"}
    assert second.reason == "has not as many cells as the header"


def test_structs_of_parquet_lose_the_fields_of_other_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    messages = [[{"role": "user", "content": "a"}, {"role": "tool", "content": "b", "name": "f"}]]
    parquet.write_table(pa.table({"messages": messages}), path)
    ((_, row),) = read_rows(local_file(path))
    assert row == {"messages": messages[0]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"nonsense", "a.parquet: cannot be read: "),
        ("a.jsonl.gz", b"nonsense", "a.jsonl.gz: cannot be read: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(LINES.encode())[:-20], "a.jsonl.gz: cannot be read: "),
        ("a.jsonl.zst", b"nonsense", "a.jsonl.zst: cannot be read: "),
        ("a.json", b'[{"text": "a"}, {"text"', "a.json: cannot be read: row 2 is no JSON"),
        ("a.json", b"[" * 100_000, "a.json: cannot be read: "),
    ],
)
def test_unreadable_files_are_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidInputError) as refused:
        list(read_rows(local_file(path)))
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_pieces_begin_where_tokens_begin_and_are_the_whole() -> None:
    text = "some words of a text " * 20_000
    for parts in ([text], [text[at : at + 999] for at in range(0, len(text), 999)]):
        pieces = list(in_pieces(iter(parts)))
        assert "".join(pieces) == text
        assert all(piece.startswith(" ") for piece in pieces[1:])
        assert max(map(len, pieces)) <= PIECE_CHARACTERS
    assert list(in_pieces(iter(["x" * (PIECE_CHARACTERS + 1)]))) == ["x" * PIECE_CHARACTERS, "x"]
    assert list(in_pieces(iter(["short"]))) == ["short"]
