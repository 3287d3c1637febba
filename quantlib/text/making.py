"""A model's windows of a text, made once in a process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from quantlib.checkpoint.source import FileSource
from quantlib.store.receipt import digest_of
from quantlib.text.conversations import ChatTemplate
from quantlib.text.files import TextFile
from quantlib.text.tokenizer import load_tokenizer, tokenizer_digests
from quantlib.text.windows import Cut, Windowing, token_windows

_made: dict[str, Cut] = {}
"""The command line looks at texts before anything is written, and a step then writes them."""


def windows_key(source: FileSource, windowing: Windowing, vocabulary: int | None) -> dict[str, Any]:
    """All that decides which windows come of a text.

    Args:
        source: The model, for its tokenizer.
        windowing: Which windows are wanted.
        vocabulary: Rows of the model's embedding, where they are known.
    """
    return {
        "tokenizer": tokenizer_digests(source),
        "windowing": asdict(windowing),
        "vocabulary": vocabulary,
    }


def make_windows(
    name: str,
    content: str,
    files: Sequence[TextFile],
    source: FileSource,
    windowing: Windowing,
    vocabulary: int | None,
) -> Cut:
    """The windows of a text, as :func:`quantlib.text.windows.token_windows` makes them.

    Args:
        name: What to call the text.
        content: Digest of its files.
        files: The files.
        source: The model, for its tokenizer and chat template.
        windowing: Which windows are wanted.
        vocabulary: Rows of the model's embedding, where they are known.

    Raises:
        InvalidInputError: The text cannot be read or has too few tokens.
    """
    key = digest_of([content, windows_key(source, windowing, vocabulary)])
    if key not in _made:
        _made[key] = token_windows(
            name,
            files,
            load_tokenizer(source),
            ChatTemplate.of_model(source),
            windowing,
            vocabulary,
        )
    return _made[key]
