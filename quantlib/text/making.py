"""A model's windows of a text, made once in a process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from quantlib.checkpoint.source import FileSource
from quantlib.store.receipt import digest_of
from quantlib.text.chat_template import ChatTemplate
from quantlib.text.files import TextFile
from quantlib.text.formats import Fault
from quantlib.text.processor import (
    NOT_JUDGED,
    OpenImage,
    Processor,
    Sample,
    processor_digests,
    processor_of,
)
from quantlib.text.tokenizer import load_tokenizer, tokenizer_digests
from quantlib.text.windows import Cut, Windowing, illustrated_samples, token_windows
from quantlib.text.writing import Writing, writing_for

_made: dict[str, tuple[Cut, Writing]] = {}
"""The command line looks at texts before anything is written, and a step then writes them."""


def windows_key(
    source: FileSource, windowing: Windowing, vocabulary: int | None, *, illustrated: bool = False
) -> dict[str, Any]:
    """All that decides which windows come of a text.

    Args:
        source: The model, for its tokenizer.
        windowing: Which windows are wanted.
        vocabulary: Rows of the model's embedding, where they are known.
        illustrated: Whether there are images in the text, which are looked at.
    """
    key = {
        "tokenizer": tokenizer_digests(source),
        "windowing": asdict(windowing),
        "vocabulary": vocabulary,
    }
    return key | {"processor": processor_digests(source)} if illustrated else key


def make_windows(
    name: str,
    content: str,
    files: Sequence[TextFile],
    source: FileSource,
    windowing: Windowing,
    vocabulary: int | None,
    open_image: OpenImage | None = None,
) -> tuple[Cut, Writing]:
    """The windows of a text, as :func:`quantlib.text.windows.token_windows` makes them.

    How documents are written and kept apart follows from what is asked for and from the model.

    Args:
        name: What to call the text.
        content: Digest of its files.
        files: The files.
        source: The model, for its tokenizer and chat template.
        windowing: Which windows are wanted.
        vocabulary: Rows of the model's embedding, where they are known.
        open_image: Opens the images of the text; None where none are looked at.

    Raises:
        InvalidInputError: The text cannot be read or has too few tokens, or conversations are asked
            for and the model has no chat template, or it fails.
    """
    illustrated = open_image is not None
    key = digest_of([content, windows_key(source, windowing, vocabulary, illustrated=illustrated)])
    if key not in _made:
        template = ChatTemplate.of_model(source)
        tokenizer = load_tokenizer(source)
        writing = writing_for(
            name, windowing.content, windowing.document_end, source, tokenizer, template
        )
        processor: Processor | Fault = NOT_JUDGED
        if open_image is not None:
            processor = processor_of(source, template, open_image)
        end = tokenizer.token_to_id(writing.document_end) if writing.document_end else None
        cut = token_windows(name, files, tokenizer, template, windowing, vocabulary, processor, end)
        _made[key] = cut, writing
    return _made[key]


def make_samples(
    files: Sequence[TextFile],
    source: FileSource,
    windowing: Windowing,
    open_image: OpenImage,
    cut: Cut,
) -> Iterator[Sample]:
    """What the model is given of the documents with images among the windows.

    Args:
        files: The text's files.
        source: The model.
        windowing: Which windows were wanted.
        open_image: Opens the images of the text.
        cut: What :func:`make_windows` gave.
    """
    template = ChatTemplate.of_model(source)
    processor = processor_of(source, template, open_image)
    assert isinstance(processor, Processor)
    return illustrated_samples(files, template, windowing, processor, cut)
