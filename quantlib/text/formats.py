"""Files of text as rows: JSON Lines, JSON, Parquet, CSV; and plain text in pieces.

Everything is read as a stream: no more than a row, or a batch of them, is in memory.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TextIO

from quantlib.errors import InvalidInputError
from quantlib.runtime.distribution import pip_install
from quantlib.text.files import TextFile

PIECE_CHARACTERS = 1 << 16
"""Longer text is read and tokenized in pieces of about this length."""

MOST_CHARACTERS = 64 << 20
"""A row that is longer is left out: it would have to be in memory as a whole."""

_COMPRESSIONS = (".gz", ".zst")
_DELIMITERS = ",;\t"
_PARQUET_ROWS = 64


@dataclass(frozen=True)
class Fault:
    """Why a row is left out.

    Attributes:
        reason: Of a few kinds, which are counted.
        detail: What is particular about this row.
    """

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


class RowError(Exception):
    """A row cannot be used; ``fault`` says why."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.fault = Fault(reason, detail)
        super().__init__(str(self.fault))


_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    RecursionError,
    csv.Error,
    zlib.error,
)

Rows = Iterator[tuple[int, Any]]
"""Numbers of rows, from 1, each with what the row holds, or its :class:`Fault`."""


def kind_of(name: str) -> str | None:
    """What a file holds, by its name: ``jsonl``, … ; None where no text is known to be in it."""
    path = PurePosixPath(name.lower())
    if path.suffix in _COMPRESSIONS:
        path = path.with_suffix("")
    kind = path.suffix.removeprefix(".")
    return kind if kind in KINDS else None


def read_rows(file: TextFile) -> Rows:
    """The rows of a file that is no plain text.

    Raises:
        InvalidInputError: It cannot be read as what its name says.
    """
    with _readable(file):
        yield from _READERS[kind_of(file.name) or ""](file)


def read_pieces(file: TextFile) -> Iterator[str]:
    """A plain text in pieces; bytes that are no UTF-8 come as lone surrogates.

    Raises:
        InvalidInputError: It cannot be read.
    """
    with _readable(file), _text(file, newline=None) as stream:
        yield from in_pieces(iter(lambda: stream.read(PIECE_CHARACTERS), ""))


def in_pieces(parts: Iterator[str]) -> Iterator[str]:
    """Text cut before spaces, where tokens begin, into pieces that are not too long."""
    rest = ""
    for part in parts:
        text, at = rest + part, 0
        while len(text) - at > PIECE_CHARACTERS:
            cut = cut_before(text, at + PIECE_CHARACTERS)
            yield text[at:cut]
            at = cut
        rest = text[at:]
    if rest:
        yield rest


def cut_before(text: str, end: int, within: int = PIECE_CHARACTERS // 2) -> int:
    """Where to cut a text, at ``end`` or less than ``within`` before it.

    Between two words, where tokenizers cut it too; at ``end`` where there is no such place.
    """
    start = end - within
    at = text.rfind(" ", start, end)
    while at > start and (text[at - 1].isspace() or text[at + 1].isspace()):
        at = text.rfind(" ", start, at)
    return at if at > start else end


@contextmanager
def _readable(file: TextFile) -> Iterator[None]:
    """Says in one line why a file cannot be read."""
    try:
        yield
    except _UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InvalidInputError.one(file.name, f"cannot be read: {reason}") from None


@contextmanager
def _bytes(file: TextFile) -> Iterator[BinaryIO]:
    with file.open() as raw:
        match PurePosixPath(file.name.lower()).suffix:
            case ".gz":
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield io.BufferedReader(stream)
            case ".zst":
                with _pyarrow(file).CompressedInputStream(raw, "zstd") as stream:
                    yield io.BufferedReader(stream)
            case _:
                yield raw


@contextmanager
def _text(file: TextFile, newline: str | None) -> Iterator[TextIO]:
    """Text in UTF-8, or in UTF-16 where a byte order mark says so; other marks are left out."""
    with _bytes(file) as binary:
        start = binary.peek(2)[:2]  # type: ignore[attr-defined]
        utf16 = start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        yield io.TextIOWrapper(
            binary,
            encoding="utf-16" if utf16 else "utf-8-sig",
            errors="surrogateescape",
            newline=newline,
        )


def _read_json_lines(file: TextFile) -> Rows:
    with _text(file, newline="\n") as stream:
        for number, line in _lines(stream):
            if len(line) > MOST_CHARACTERS:
                yield number, _TOO_LONG
            elif line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield number, Fault("is no JSON", str(error))


def _lines(stream: TextIO) -> Iterator[tuple[int, str]]:
    number = 0
    while line := stream.readline(MOST_CHARACTERS + 1):
        number += 1
        yield number, line
        while len(line) > MOST_CHARACTERS and not line.endswith("\n"):
            line = stream.readline(MOST_CHARACTERS + 1)


def _read_json(file: TextFile) -> Rows:
    """A list of rows; or one row behind the other, for JSON Lines are often called .json too."""
    decoder = json.JSONDecoder()
    with _text(file, newline="\n") as stream:
        text = stream.read(PIECE_CHARACTERS).lstrip()
        listed = text.startswith("[")
        at, number = int(listed), 0
        while True:
            while at < len(text) and text[at] in (" \t\r\n," if listed else " \t\r\n"):
                at += 1
            if listed and text.startswith("]", at):
                return
            try:
                value, at = decoder.raw_decode(text, at)
            except ValueError as error:
                # What is there may be the start of a row: twice as much shows whether it is.
                text, at = text[at:], 0
                more = stream.read(max(len(text), PIECE_CHARACTERS))
                if not more and not listed and not text:
                    return
                if not more or len(text) > MOST_CHARACTERS:
                    raise ValueError(f"row {number + 1} is no JSON: {error}") from None
                text += more
                continue
            number += 1
            yield number, value


def _read_csv(file: TextFile) -> Rows:
    csv.field_size_limit(MOST_CHARACTERS)
    with _text(file, newline="") as stream:
        first = stream.readline(MOST_CHARACTERS)
        if not first.strip():
            return
        delimiter = max(_DELIMITERS, key=first.count)
        (names,) = csv.reader([first], delimiter=delimiter)
        rows = (row for row in csv.reader(stream, delimiter=delimiter) if row)
        for number, row in enumerate(rows, start=1):
            if len(row) != len(names):
                yield number, Fault("has not as many cells as the header", f"{len(row)}")
            else:
                yield number, dict(zip(names, row, strict=True))


def _read_parquet(file: TextFile) -> Rows:
    parquet = _pyarrow(file).parquet
    with _bytes(file) as stream, tempfile.TemporaryFile() as unpacked:
        if file.name.lower().endswith(_COMPRESSIONS):
            shutil.copyfileobj(stream, unpacked)
            unpacked.seek(0)
            stream = unpacked
        number = 0
        for batch in parquet.ParquetFile(stream).iter_batches(batch_size=_PARQUET_ROWS):
            for index in range(len(batch)):
                number += 1
                try:
                    (row,) = batch.slice(index, 1).to_pylist()
                except UnicodeDecodeError:
                    yield number, NOT_UNICODE
                else:
                    yield number, {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    """A value without the fields that only other rows have: Parquet's structs have all of them."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return value


def _pyarrow(file: TextFile) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InvalidInputError.one(file.name, "needs pyarrow", pip_install("datasets")) from None
    return pyarrow


NOT_UNICODE = Fault("is no valid Unicode")
_TOO_LONG = Fault(f"is longer than {MOST_CHARACTERS >> 20} Mi characters")
_READERS: dict[str, Callable[[TextFile], Rows]] = {
    "jsonl": _read_json_lines,
    "json": _read_json,
    "parquet": _read_parquet,
    "csv": _read_csv,
}
PLAIN = "txt"
KINDS = (*_READERS, PLAIN)
KNOWN_KINDS = ", ".join(f".{kind}" for kind in KINDS) + ", each also .gz or .zst"
