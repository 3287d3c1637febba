"""Files of text, and the tokenizer of a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quantlib.checkpoint.source import FolderSource
from quantlib.recipe import Content
from quantlib.text.documents import Piece, Tally, read_documents
from quantlib.text.files import local_file
from quantlib.text.tokenizer import load_tokenizer

Read = Callable[..., tuple[list[Piece], Tally]]


@pytest.fixture
def tokenizer(tiny_llama: Path):
    return load_tokenizer(FolderSource(tiny_llama))


@pytest.fixture
def read() -> Read:
    """Reads files whole: their pieces, and what was counted."""

    def read(
        *paths: Path, field: str | None = None, template=None, content: Content = "auto"
    ) -> tuple[list[Piece], Tally]:
        tally = Tally()
        files = [local_file(path) for path in paths]
        return list(read_documents(files, field, template, tally, content=content)), tally

    return read
