"""From documents to windows of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from quantlib.errors import InvalidInputError
from quantlib.text.conversations import ChatTemplate
from quantlib.text.documents import Illustrated, Piece, Tally, read_documents
from quantlib.text.files import TextFile
from quantlib.text.formats import Fault, RowError, cut_before
from quantlib.text.processor import NOT_JUDGED, NOT_THERE, Processor, Sample

POOL_FACTOR = 4
"""Windows are chosen among up to this many times as many as are wanted."""

_CUT_CHARACTERS = 1 << 11


@dataclass(frozen=True)
class Windowing:
    """Which windows are wanted of a text.

    Attributes:
        num_samples: How many, at least.
        sequence_length: Tokens in each.
        seed: Decides which ones are chosen.
        text_field: The field of a row to take; None for the one that is recognized.
        most: How many where the text goes so far, if that is more. They are in no order then, so
            that the first of them are a sample of the text too.
    """

    num_samples: int
    sequence_length: int
    seed: int
    text_field: str | None = None
    most: int = 0

    @property
    def pool(self) -> int:
        """Tokens that windows are chosen among, if there are so many."""
        return max(self.num_samples, self.most) * self.sequence_length * POOL_FACTOR


@dataclass(frozen=True)
class Cut:
    """Windows of a text, and how they were made.

    Attributes:
        tokens: int64 ``[samples, sequence]``.
        tally: What was read.
        opening: The special tokens that every window begins with.
        illustrated: Which of the text's documents with images were chosen, counted from 0; each is
            a window of its own, which :func:`illustrated_samples` gives.
    """

    tokens: np.ndarray
    tally: Tally
    opening: tuple[str, ...]
    illustrated: tuple[int, ...] = ()


@dataclass(frozen=True)
class IllustratedWindows:
    """The windows that are documents with images, beside those of tokens alone.

    Attributes:
        samples: How many.
        tokens: Of all of them, those of images included.
        digest: Of what the model is given of them.
    """

    samples: int
    tokens: int
    digest: str


@dataclass(frozen=True)
class Windows:
    """Token windows and where they come from.

    Attributes:
        tokens: int64 ``[samples, sequence]``.
        source: What the text is called.
        shipped: Whether it is the text that ships with quantlib.
        content: Digest of the text's files.
        read: What was read of it, as :meth:`quantlib.text.documents.Tally.to_json` says it.
        opening: The special tokens that every window begins with, as the tokenizer has it.
        illustrated: What there is beside ``tokens``: documents with images.
    """

    tokens: np.ndarray
    source: str
    shipped: bool
    content: str
    read: dict[str, Any]
    opening: Sequence[str] = ()
    illustrated: IllustratedWindows | None = None

    @property
    def samples(self) -> int:
        """Windows of both kinds."""
        return len(self.tokens) + (self.illustrated.samples if self.illustrated else 0)

    @property
    def token_count(self) -> int:
        """Tokens of both kinds."""
        return self.tokens.size + (self.illustrated.tokens if self.illustrated else 0)

    @property
    def predicted(self) -> np.ndarray:
        """Which positions are followed by a token that a model may be held to, bool.

        ``[samples, sequence - 1]``. What documents are opened with is put there, never said.
        """
        opening = self.tokens[0, : len(self.opening)]
        return ~np.isin(self.tokens[:, 1:], opening)

    @property
    def digest(self) -> str:
        """``sha256:`` and the hexadecimal digest of the windows' shape and tokens, and images."""
        content = str(self.tokens.shape).encode() + self.tokens.astype("<i8").tobytes()
        if self.illustrated is not None:
            content += self.illustrated.digest.encode()
        return "sha256:" + hashlib.sha256(content).hexdigest()


def token_windows(
    name: str,
    files: Sequence[TextFile],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    windowing: Windowing,
    vocabulary: int | None = None,
    processor: Processor | Fault = NOT_JUDGED,
) -> Cut:
    """Packs documents one behind the other and cuts them into windows.

    Documents carry the special tokens that the tokenizer adds, and conversations those of their
    chat template. Reading stops when there are four times as many tokens as wanted; the windows are
    then chosen by the seed and kept in order. Every window begins with what the tokenizer puts
    before a text (BOS), as every prompt does that is served: models make of the first position
    what they make of no other. A document with images is a window of its own, as long as it is, and
    shares no window with others.

    Args:
        name: What to call the text.
        files: Its files.
        tokenizer: The model's tokenizer.
        template: The model's chat template.
        windowing: Which windows are wanted.
        vocabulary: Rows of the model's embedding.
        processor: The model's; or why documents with images are left out.

    Raises:
        InvalidInputError: The text cannot be read, has fewer tokens than wanted (the message says
            how many there are), or a token that the model has no embedding of.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tally = Tally()
    parts: list[np.ndarray] = []
    found = 0
    encode = _Encoder(tokenizer)
    opening = encode.opening
    require_known(opening, vocabulary, tokenizer, f"{name}: what its windows begin with")
    illustrated: list[int] = []
    place = processor.place if isinstance(processor, Processor) else processor
    met = tried = 0
    for document in read_documents(files, windowing.text_field, template, tally, place):
        if isinstance(document, Illustrated):
            assert isinstance(processor, Processor)
            try:
                ids = processor(document, windowing.sequence_length)["input_ids"][0]
            except RowError as error:
                tally.leave_out(document.where, error.fault)
                tried += error.fault.reason != NOT_THERE.reason
                ids = opening[:0]
            else:
                tally.use(document.kind, None if document.plain else True)
                illustrated.append(met)
                tried += 1
            met += 1
        else:
            ids = encode(document)
            parts.append(ids)
            found += len(ids)
        require_known(ids, vocabulary, tokenizer, f"{name}: {document.where}")
        # No more images are fetched than may be looked at here.
        if found + tried * windowing.sequence_length >= windowing.pool:
            break
    windows = _windows(parts, windowing.sequence_length, opening)
    words = tuple(str(tokenizer.id_to_token(token)) for token in opening.tolist())
    _require_enough(name, found, (len(windows), len(illustrated)), words, windowing, tally)
    random = np.random.default_rng(windowing.seed)
    available = len(windows) + len(illustrated)
    if windowing.most > windowing.num_samples:
        chosen = random.permutation(available)[: windowing.most]
    else:
        chosen = np.sort(random.choice(available, size=windowing.num_samples, replace=False))
    of_tokens = chosen[chosen < len(windows)]
    others = tuple(illustrated[each - len(windows)] for each in chosen[len(of_tokens) :])
    return Cut(windows[of_tokens], tally, words, others)


def illustrated_samples(
    files: Sequence[TextFile],
    template: ChatTemplate | None,
    text_field: str | None,
    processor: Processor,
    cut: Cut,
    most: int,
) -> Iterator[Sample]:
    """What the model is given of the chosen documents with images, one after the other.

    They are read again: all of them together are more than memory may hold.

    Args:
        files: The text's files, as :func:`token_windows` was given them.
        template: The same.
        text_field: The same.
        processor: The same.
        cut: What it gave.
        most: Tokens of a window.
    """
    documents = (
        document
        for document in read_documents(files, text_field, template, Tally(), processor.place)
        if isinstance(document, Illustrated)
    )
    last = max(cut.illustrated, default=-1)
    for number, document in zip(range(last + 1), documents, strict=False):
        if number in cut.illustrated:
            yield processor(document, most)


def _windows(parts: Sequence[np.ndarray], length: int, opening: np.ndarray) -> np.ndarray:
    """Cuts a stream of tokens into windows ``[windows, length]`` that begin with ``opening``.

    Where the stream goes on with it, or with its end, as at the start of a document, it is not put
    there twice.
    """
    stream = np.concatenate([*parts, opening[:0]])
    windows: list[np.ndarray] = []
    at = 0
    while True:
        there = _shared(opening, stream[at : at + len(opening)])
        added = opening[: len(opening) - there]
        end = at + length - len(added)
        if end > len(stream):
            return np.array(windows, dtype=np.int64).reshape(-1, length)
        windows.append(np.concatenate([added, stream[at:end]]))
        at = end


def _shared(first: np.ndarray, second: np.ndarray) -> int:
    """How many of the last of one are the first of the other, at most."""
    counts = range(min(len(first), len(second)), 0, -1)
    return next((n for n in counts if np.array_equal(first[-n:], second[:n])), 0)


def require_known(
    ids: np.ndarray, vocabulary: int | None, tokenizer: Tokenizer, where: str
) -> None:
    """Requires that a model has an embedding of every token, where its rows are known.

    Raises:
        InvalidInputError: It has none of one; the message names the token and its id.
    """
    beyond = ids[:0] if vocabulary is None else ids[ids >= vocabulary]
    if len(beyond):
        token = int(beyond[0])
        raise InvalidInputError.one(
            where,
            f"holds the token {tokenizer.id_to_token(token)!r} with id {token}, but the model's "
            f"embedding has {vocabulary} rows",
            "give the tokenizer that belongs to the model",
        )


def require_documents(name: str, files: Sequence[TextFile], text_field: str | None) -> None:
    """Requires that there is at least one document in files.

    Raises:
        InvalidInputError: A file cannot be read, or no row is of use.
    """
    tally = Tally()
    if next(read_documents(files, text_field, None, tally), None) is None:
        _require_usable(name, tally)
        raise InvalidInputError.one(name, "is empty", "give more text")


def _require_usable(name: str, tally: Tally) -> None:
    if not tally.used and tally.left_out:
        raise InvalidInputError.one(
            name,
            f"none of its rows can be used: {tally.left_out_in_words()}",
            "give rows with text, messages, conversations, instruction and output, or prompt and "
            "completion, or name the field with text_field",
        )


def _require_enough(
    name: str,
    found: int,
    windows: tuple[int, int],
    opening: Sequence[str],
    windowing: Windowing,
    tally: Tally,
) -> None:
    samples, length = windowing.num_samples, windowing.sequence_length
    available, illustrated = sum(windows), windows[1]
    if available >= samples:
        return
    _require_usable(name, tally)
    what = f"has {found} tokens" if found or illustrated else "is empty"
    if illustrated:
        what += f" beside {illustrated} rows with images"
    if tally.left_out:
        what += f" ({tally.left_out_in_words()})"
    begun = f" that begin with {' '.join(opening)}" if opening else ""
    raise InvalidInputError.one(
        name,
        f"{what}, but {samples} samples of {length} tokens{begun} need "
        f"{samples * (length - len(opening))}",
        f"give more text, or at most {available} samples" if available else "give more text",
    )


class _Encoder:
    """Tokens of pieces, with a document's special tokens around its first and last one.

    Libraries take more time for a character the longer a text is, so that pieces are cut further,
    between words, where the tokens are the same.

    Attributes:
        opening: What the tokenizer puts before a text: BOS, or nothing.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        whole, bare = self._ids("a", special=True), self._ids("a")
        before = _position(whole, bare)
        self.opening = np.asarray(whole[:before], dtype=np.int64)
        self._after = np.asarray(whole[before + len(bare) :], dtype=np.int64)
        # Tokenizers that put a space before every text are not given that of the second word.
        first, both = self._ids("word"), self._ids("word more")
        self._left_out = int(first + self._ids(" more") != both)
        self._cuts = first + self._ids(" more"[self._left_out :]) == both

    def __call__(self, piece: Piece) -> np.ndarray:
        text = piece.text
        if not piece.opens and text.startswith(" "):
            text = text[self._left_out :]
        if piece.plain and piece.opens and piece.closes and len(text) <= _CUT_CHARACTERS:
            return np.asarray(self._ids(text, special=True), dtype=np.int64)
        parts = [np.asarray(self._ids(part), dtype=np.int64) for part in self._parts(text)]
        if piece.plain and piece.opens:
            parts.insert(0, self.opening)
        if piece.plain and piece.closes:
            parts.append(self._after)
        return np.concatenate(parts)

    def _parts(self, text: str) -> Iterator[str]:
        at = 0
        while self._cuts and len(text) - at > _CUT_CHARACTERS:
            cut = cut_before(text, at + _CUT_CHARACTERS, _CUT_CHARACTERS // 2)
            if cut == at + _CUT_CHARACTERS:
                break
            yield text[at:cut]
            at = cut + self._left_out
        yield text[at:]

    def _ids(self, text: str, special: bool = False) -> list[int]:
        # Without offsets, which take more time the longer a text is.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids


def _position(whole: list[int], part: list[int]) -> int:
    starts = range(len(whole) - len(part) + 1)
    return next((at for at in starts if whole[at : at + len(part)] == part), 0)
