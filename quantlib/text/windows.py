"""From documents to windows of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from quantlib.errors import InvalidInputError
from quantlib.text.chat_template import ChatTemplate
from quantlib.text.documents import Illustrated, Tally, read_documents
from quantlib.text.encoder import Encoder
from quantlib.text.files import TextFile
from quantlib.text.formats import Fault, RowError
from quantlib.text.processor import NOT_JUDGED, NOT_THERE, Processor, Sample
from quantlib.text.stream import BETWEEN, Stream, count_by_kind
from quantlib.text.writing import PLAIN_WRITING, Content, Writing

POOL_FACTOR = 4
"""Windows are chosen among up to this many times as many as are wanted."""


@dataclass(frozen=True)
class Windowing:
    """Which windows are wanted of a text.

    Attributes:
        num_samples: How many, at least.
        sequence_length: Tokens in each.
        seed: Decides which ones are chosen.
        text_field: The field of a row to take; None for the one that is recognized.
        content: How rows are written; ``auto`` by whether the model has a chat template.
        document_end: What stands behind a document: ``auto``, ``none`` or a token.
        most: How many where the text goes so far, if that is more. They are in no order then, so
            that the first of them are a sample of the text too.
    """

    num_samples: int
    sequence_length: int
    seed: int
    text_field: str | None = None
    content: Content = "auto"
    document_end: str = "auto"
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
        kinds: Of which kind of document each token is, int32 ``[samples, sequence]``: an index of
            ``kind_names``, or :data:`BETWEEN`.
        kind_names: Kinds by what rows call theirs, else by what they were recognized as.
        illustrated: Which of the text's documents with images were chosen, counted from 0; each is
            a window of its own, which :func:`illustrated_samples` gives.
    """

    tokens: np.ndarray
    tally: Tally
    opening: tuple[str, ...]
    kinds: np.ndarray
    kind_names: tuple[str, ...]
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
        writing: How documents were written and kept apart.
        kinds: Of which kind of document each token is, as :class:`Cut` has it.
        kind_names: The kinds.
        illustrated: What there is beside ``tokens``: documents with images.
    """

    tokens: np.ndarray
    source: str
    shipped: bool
    content: str
    read: dict[str, Any]
    opening: Sequence[str] = ()
    writing: Writing = PLAIN_WRITING
    kinds: np.ndarray | None = None
    kind_names: Sequence[str] = ()
    illustrated: IllustratedWindows | None = None

    @property
    def samples(self) -> int:
        """Windows of both kinds."""
        return len(self.tokens) + (self.illustrated.samples if self.illustrated else 0)

    @property
    def token_count(self) -> int:
        """Tokens of both kinds."""
        return self.tokens.size + (self.illustrated.tokens if self.illustrated else 0)

    def part(self, start: int, stop: int) -> Windows:
        """Some of the windows of tokens."""
        kinds = None if self.kinds is None else self.kinds[start:stop]
        return replace(self, tokens=self.tokens[start:stop], kinds=kinds)

    @property
    def predicted(self) -> np.ndarray:
        """Which positions are followed by a token that a model may be held to, bool.

        ``[samples, sequence - 1]``. What documents are opened with, and what stands between them,
        is put there, never said.
        """
        opening = self.tokens[0, : len(self.opening)]
        said = ~np.isin(self.tokens[:, 1:], opening)
        return said if self.kinds is None else said & (self.kinds[:, 1:] != BETWEEN)

    @property
    def tokens_by_kind(self) -> dict[str, int]:
        """How many tokens of the windows are of documents of each kind, most first."""
        return {} if self.kinds is None else count_by_kind(self.kinds, self.kind_names)

    @property
    def account(self) -> dict[str, Any]:
        """What receipts and reports say of them, whatever they are for."""
        return {
            "source": self.source,
            "digest": self.digest,
            "content": self.content,
            "read": self.read,
            "opening": list(self.opening),
            "written": self.writing.in_words(),
            "kinds": self.tokens_by_kind,
        }

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
    document_end: int | None = None,
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
        document_end: The token that is put behind a document, unless it ends with it, or is a
            conversation that begins with BOS: the next one's BOS follows there.

    Raises:
        InvalidInputError: The text cannot be read, has fewer tokens than wanted (the message says
            how many there are), or a token that the model has no embedding of.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tally = Tally()
    stream = Stream()
    encode = Encoder(tokenizer)
    opening = encode.opening
    end = np.asarray([] if document_end is None else [document_end], dtype=np.int64)
    has_bos = False
    require_known(opening, vocabulary, tokenizer, f"{name}: what its windows begin with")
    illustrated: list[int] = []
    place = processor.place if isinstance(processor, Processor) else processor
    met = tried = 0
    for document in read_documents(
        files, windowing.text_field, template, tally, place, windowing.content
    ):
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
            stream.add(ids, document.kind)
            if document.opens:
                has_bos = bool(len(opening)) and np.array_equal(ids[: len(opening)], opening)
            separated = np.array_equal(ids[-1:], end) or (has_bos and not document.plain)
            if document.closes and not separated:
                stream.add(end, None)
        require_known(ids, vocabulary, tokenizer, f"{name}: {document.where}")
        # No more images are fetched than may be looked at here.
        if stream.length + tried * windowing.sequence_length >= windowing.pool:
            break
    windows, kinds = stream.windows(windowing.sequence_length, opening)
    words = tuple(str(tokenizer.id_to_token(token)) for token in opening.tolist())
    _require_enough(name, stream.length, (len(windows), len(illustrated)), words, windowing, tally)
    random = np.random.default_rng(windowing.seed)
    available = len(windows) + len(illustrated)
    if windowing.most > windowing.num_samples:
        chosen = random.permutation(available)[: windowing.most]
    else:
        chosen = np.sort(random.choice(available, size=windowing.num_samples, replace=False))
    of_tokens = chosen[chosen < len(windows)]
    others = tuple(illustrated[each - len(windows)] for each in chosen[len(of_tokens) :])
    names = tuple(stream.kinds)
    return Cut(windows[of_tokens], tally, words, kinds[of_tokens], names, others)


def illustrated_samples(
    files: Sequence[TextFile],
    template: ChatTemplate | None,
    windowing: Windowing,
    processor: Processor,
    cut: Cut,
) -> Iterator[Sample]:
    """What the model is given of the chosen documents with images, one after the other.

    They are read again: all of them together are more than memory may hold.

    Args:
        files: The text's files, as :func:`token_windows` was given them.
        template: The same.
        windowing: The same.
        processor: The same.
        cut: What it gave.
    """
    field, content = windowing.text_field, windowing.content
    documents = (
        document
        for document in read_documents(files, field, template, Tally(), processor.place, content)
        if isinstance(document, Illustrated)
    )
    last = max(cut.illustrated, default=-1)
    for number, document in zip(range(last + 1), documents, strict=False):
        if number in cut.illustrated:
            yield processor(document, windowing.sequence_length)


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
