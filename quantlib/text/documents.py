"""The documents of a text, in pieces, and an account of what was read and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from quantlib.errors import InvalidInputError
from quantlib.recipe import Content
from quantlib.text.chat_template import BrokenTemplateError, ChatTemplate
from quantlib.text.conversations import Conversation, plain_text
from quantlib.text.files import TextFile
from quantlib.text.formats import (
    NOT_UNICODE,
    PLAIN,
    Fault,
    RowError,
    in_pieces,
    kind_of,
    read_pieces,
    read_rows,
)
from quantlib.text.pictures import PLACE, Picture, TextWithImages
from quantlib.text.rows import recognize

_SHOWN = 3
_EMPTY = Fault("empty")
_NO_CONVERSATION = Fault("no conversation, which alone is asked for")
_PLAIN_KIND = "plain text"


@dataclass(frozen=True)
class Piece:
    """Part of a document; short ones have a single piece.

    Attributes:
        where: File and row, for messages.
        text: What is to be tokenized.
        opens: The document begins here.
        closes: It ends here.
        plain: The tokenizer is to add its special tokens: a chat template has written them itself.
        kind: What kind of document it is: as its row says, else what that was recognized as.
    """

    where: str
    text: str
    opens: bool = True
    closes: bool = True
    plain: bool = True
    kind: str = ""


@dataclass(frozen=True)
class Illustrated:
    """A document with images.

    Attributes:
        where: File and row, for messages.
        file: The name of the file.
        kind: What the row was recognized as.
        text: What is to be tokenized, with the model's own words where images go.
        plain: The tokenizer is to add its special tokens.
        pictures: The images, in the order of their places.
    """

    where: str
    file: str
    kind: str
    text: str
    plain: bool
    pictures: tuple[Picture, ...]


@dataclass
class Tally:
    """What was read of a text.

    Attributes:
        used: Documents by what they were recognized as.
        left_out: Rows that were not used, by the reason.
        examples: The first of those, with file, row and reason.
        templated: Conversations that the model's chat template wrote.
        joined: Conversations that none wrote: their messages follow on each other.
    """

    used: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    templated: int = 0
    joined: int = 0

    @property
    def rows(self) -> int:
        """All that were read."""
        return self.used.total() + self.left_out.total()

    def use(self, kind: str, templated: bool | None = None) -> None:
        """Counts a row that is used.

        Args:
            kind: What it was recognized as.
            templated: Of a conversation, whether the chat template wrote it.
        """
        self.used[kind] += 1
        self.templated += templated is True
        self.joined += templated is False

    def leave_out(self, where: str, fault: Fault) -> None:
        """Counts a row that is not used."""
        self.left_out[fault.reason] += 1
        if len(self.examples) < _SHOWN:
            self.examples.append(f"{where}: {fault}")

    def left_out_in_words(self) -> str:
        """As ``3 left out: 2 null in text, 1 empty (a.jsonl row 4: null in text)``."""
        if not self.left_out:
            return ""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.most_common())
        return f"{self.left_out.total()} left out: {reasons} ({'; '.join(self.examples)})"

    def in_words(self) -> str:
        """What was recognized, and what was left out, in one line."""
        kinds = ", ".join(f"{count} as {kind}" for kind, count in sorted(self.used.items()))
        words = [f"{self.rows} rows read: {kinds or 'none used'}"]
        if self.templated:
            words.append("conversations written by the model's chat template")
        if self.joined:
            words.append("messages of conversations one below the other, without roles")
        if self.left_out:
            words.append(self.left_out_in_words())
        return "; ".join(words)

    def to_json(self) -> dict[str, Any]:
        """What receipts and reports say of it."""
        return {
            "rows": self.rows,
            "used": dict(sorted(self.used.items())),
            "left_out": dict(sorted(self.left_out.items())),
            "examples": self.examples,
            "in_words": self.in_words(),
        }


def read_documents(
    files: Iterable[TextFile],
    text_field: str | None = None,
    template: ChatTemplate | None = None,
    tally: Tally | None = None,
    place: str | Fault | None = None,
    content: Content = "auto",
) -> Iterator[Piece | Illustrated]:
    """The documents of files, in order; rows that are none are left out and counted.

    Args:
        files: Of kinds that are known.
        text_field: The field of a row to take; None for the one that is recognized.
        template: Writes conversations.
        tally: Where it is counted; documents with images only where they are left out.
        place: What the model's text has where an image goes, or why rows with images are left out;
            None where nobody will read the text of such rows.
        content: What is written: ``conversations`` alone; ``text``, with the messages of
            conversations one below the other; else both, conversations by the template.

    Raises:
        InvalidInputError: A file cannot be read at all, or the chat template fails on a row.
    """
    tally = Tally() if tally is None else tally
    writer = None if content == "text" else template
    for file in files:
        if kind_of(file.name) == PLAIN:
            if content == "conversations":
                tally.leave_out(file.name, _NO_CONVERSATION)
            else:
                yield from _plain(file, tally)
            continue
        for number, row in read_rows(file):
            where = f"{file.name} row {number}"
            found = row if isinstance(row, Fault) else recognize(row, text_field)
            try:
                if isinstance(found, Fault):
                    tally.leave_out(where, found)
                elif pictures := _pictures(found[1]):
                    text, plain = _with_places(found[1], template, place, len(pictures))
                    kind = f"{found[0]} with images"
                    yield Illustrated(where, file.name, kind, text, plain, pictures)
                else:
                    if content == "conversations" and isinstance(found[1], str):
                        raise RowError(_NO_CONVERSATION.reason)
                    text, plain = _written(*found, writer, tally)
                    yield from _pieces(where, text, plain, _label(row, found[0]))
            except RowError as error:
                tally.leave_out(where, error.fault)
            except BrokenTemplateError as error:
                raise InvalidInputError.one(
                    where,
                    f"the model's chat template fails on it: {error}",
                    "mend the template or the row, or let the text be read without a template: "
                    "content: text",
                ) from None


def _label(row: Any, recognized: str) -> str:
    said = row.get("kind") if isinstance(row, dict) else None
    return said if isinstance(said, str) and said else recognized


def _pictures(held: str | TextWithImages | Conversation) -> tuple[Picture, ...]:
    return () if isinstance(held, str) else held.pictures


def _with_places(
    held: str | TextWithImages | Conversation,
    template: ChatTemplate | None,
    place: str | Fault | None,
    count: int,
) -> tuple[str, bool]:
    """The text of a row with images, and whether it is plain.

    Raises:
        RowError: It cannot be used.
    """
    if place is None:
        return "", True
    if isinstance(place, Fault):
        raise RowError(place.reason, place.detail)
    if isinstance(held, TextWithImages):
        text, plain = held.text.removeprefix("\ufeff").replace(PLACE, place), True
    else:
        assert isinstance(held, Conversation) and template is not None
        text, plain = template.render(held), False
    if not _is_unicode(text):
        raise RowError(NOT_UNICODE.reason)
    if (places := text.count(place)) != count:
        raise RowError("has not as many images as places for them", f"{count} for {places} places")
    return text, plain


def _written(
    kind: str,
    held: str | TextWithImages | Conversation,
    template: ChatTemplate | None,
    tally: Tally,
) -> tuple[str, bool]:
    """The text of a row, and whether it is plain.

    Raises:
        RowError: It cannot be used.
    """
    if isinstance(held, str):
        text, plain = held.removeprefix("\ufeff"), True
    elif isinstance(held, Conversation) and template is not None:
        text, plain = template.render(held), False
    else:
        assert isinstance(held, Conversation)
        text, plain = plain_text(held), True
    if not text.strip():
        raise RowError(_EMPTY.reason)
    if not _is_unicode(text):
        raise RowError(NOT_UNICODE.reason)
    tally.use(kind, None if isinstance(held, str) else not plain)
    return text, plain


def _pieces(where: str, text: str, plain: bool, kind: str) -> Iterator[Piece]:
    pieces = list(in_pieces(iter((text,))))
    for index, piece in enumerate(pieces):
        yield Piece(where, piece, index == 0, index == len(pieces) - 1, plain, kind)


def _plain(file: TextFile, tally: Tally) -> Iterator[Piece]:
    """A file of plain text is one document; a piece of it that is no text is left out."""
    opened = False
    held: tuple[str, str] | None = None
    for number, text in enumerate(read_pieces(file), start=1):
        where = file.name if number == 1 else f"{file.name} part {number}"
        if not _is_unicode(text):
            tally.leave_out(where, NOT_UNICODE)
        elif opened or held or text.strip():
            if held:
                yield Piece(*held, opens=not opened, closes=False, kind=_PLAIN_KIND)
                opened = True
            else:
                tally.used[_PLAIN_KIND] += 1
            held = (where, text)
    if held:
        yield Piece(*held, opens=not opened, kind=_PLAIN_KIND)
    elif not tally.left_out:
        tally.leave_out(file.name, _EMPTY)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
