"""The tokenizer of a model."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from quantlib.checkpoint.source import FileSource
from quantlib.errors import InvalidInputError
from quantlib.text.chat_template import TEMPLATE_FILES

_WHOLE = "tokenizer.json"
TOKENIZER_FILES = frozenset(
    {
        *TEMPLATE_FILES,
        _WHOLE,
        "tokenizer.model",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
    }
)
CONFIG = "config.json"
"""Says which tokenizer it is, where ``tokenizer.json`` does not."""


def _files(source: FileSource) -> list[str]:
    names = source.names()
    wanted = TOKENIZER_FILES if _WHOLE in names else TOKENIZER_FILES | {CONFIG}
    return [name for name in names if name in wanted]


def tokenizer_digests(source: FileSource) -> dict[str, str]:
    """The sha256 of each file that decides what a model's tokenizer and chat template do."""
    return {name: hashlib.sha256(source.read(name)).hexdigest() for name in _files(source)}


def load_tokenizer(source: FileSource) -> Tokenizer:
    """The tokenizer of a model.

    A model without ``tokenizer.json`` has its tokenizer converted by transformers, which takes
    seconds. Code that a model brings is neither run nor asked about.

    Raises:
        InvalidInputError: The model has no tokenizer that can be read.
    """
    if _WHOLE in source.names():
        try:
            return Tokenizer.from_buffer(bytes(source.read(_WHOLE)))
        except Exception as error:  # the library raises bare Exceptions
            raise InvalidInputError.one(
                source.describe(_WHOLE), f"cannot be read: {error}"
            ) from None
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name in _files(source):
            Path(folder, name).write_bytes(source.read(name))
        try:
            return AutoTokenizer.from_pretrained(
                folder, use_fast=True, trust_remote_code=False
            ).backend_tokenizer
        except Exception as error:  # of whatever library the conversion comes to
            reason = str(error).strip().partition("\n")[0]
            raise InvalidInputError.one(
                source.describe(_WHOLE),
                f"is missing, and the model's other files hold no tokenizer: {reason}",
            ) from None
