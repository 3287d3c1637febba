"""Text to packed token windows. Imports neither torch nor transformers."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from quantlib.checkpoint.source import FileSource
from quantlib.distribution import pip_install
from quantlib.errors import InvalidInputError

Purpose = Literal["calibration", "evaluation"]

_SHIPPED = {"calibration": "calibration.jsonl", "evaluation": "heldout.jsonl"}
_SUFFIXES = (".jsonl", ".txt", ".parquet")
_POOL_FACTOR = 4
"""Windows are chosen among up to this many times as many as are wanted."""


@dataclass(frozen=True)
class Text:
    """Which text to read.

    Attributes:
        dataset: A file, a folder of files, the name of a `datasets` dataset, or None for the text
            that ships.
        purpose: Which of the shipped texts to take: they share no source.
        text_field: Field or column of a record that holds the text.
        split: Split of a `datasets` dataset.
    """

    dataset: str | None
    purpose: Purpose
    text_field: str = "text"
    split: str = "train"

    @property
    def name(self) -> str:
        """What to call the text in messages and reports."""
        return self.dataset or f"the {self.purpose} text that ships with quantlib"


@dataclass(frozen=True)
class Windows:
    """Token windows and where they come from.

    Attributes:
        tokens: int64 ``[samples, sequence]``.
        source: Name of the text.
        shipped: Whether it is the text that ships with quantlib.
        digest: sha256 over shape and tokens.
    """

    tokens: np.ndarray
    source: str
    shipped: bool

    @property
    def digest(self) -> str:
        """``sha256:`` and the hexadecimal digest of the windows' shape and tokens."""
        content = str(self.tokens.shape).encode() + self.tokens.astype("<i8").tobytes()
        return "sha256:" + hashlib.sha256(content).hexdigest()


def load_tokenizer(source: FileSource) -> Tokenizer:
    """The tokenizer of a model.

    A model without ``tokenizer.json`` has its tokenizer converted by transformers, which takes
    seconds.

    Raises:
        InvalidInputError: The model has no tokenizer that can be read.
    """
    if "tokenizer.json" in source.names():
        try:
            return Tokenizer.from_buffer(bytes(source.read("tokenizer.json")))
        except Exception as error:  # the library raises bare Exceptions
            raise InvalidInputError.one(
                source.describe("tokenizer.json"), f"cannot be read: {error}"
            ) from None
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name in source.names():
            if not name.endswith(".safetensors"):
                Path(folder, name).write_bytes(source.read(name))
        try:
            return AutoTokenizer.from_pretrained(folder, use_fast=True).backend_tokenizer
        except (OSError, ValueError, AttributeError, ImportError) as error:
            raise InvalidInputError.one(
                source.describe("tokenizer.json"),
                f"is missing, and the model's other files hold no tokenizer: {error}",
            ) from None


def token_windows(
    text: Text, tokenizer: Tokenizer, num_samples: int, sequence_length: int, seed: int
) -> Windows:
    """Packs documents one behind the other and cuts them into windows.

    Documents carry the special tokens that the tokenizer adds. Reading stops when there are four
    times as many tokens as wanted; the windows are then chosen by the seed and kept in order.

    Args:
        text: Which text.
        tokenizer: The model's tokenizer.
        num_samples: How many windows.
        sequence_length: Tokens in a window.
        seed: Decides which windows are chosen.

    Raises:
        InvalidInputError: The text cannot be read, or has fewer tokens than wanted: the message
            says how many there are.
    """
    wanted = num_samples * sequence_length
    tokenizer.no_truncation()
    tokenizer.no_padding()
    pieces: list[np.ndarray] = []
    found = 0
    for document in read_documents(text):
        ids = np.asarray(tokenizer.encode(document).ids, dtype=np.int64)
        pieces.append(ids)
        found += len(ids)
        if found >= wanted * _POOL_FACTOR:
            break
    if found < wanted:
        what = "is empty" if not found else f"has {found} tokens"
        raise InvalidInputError.one(
            text.name,
            f"{what}, but {num_samples} samples of {sequence_length} tokens need {wanted}",
            f"give more text, or at most {found // sequence_length} samples"
            if found >= sequence_length
            else "give more text",
        )
    stream = np.concatenate(pieces)
    available = found // sequence_length
    windows = stream[: available * sequence_length].reshape(available, sequence_length)
    chosen = np.random.default_rng(seed).choice(available, size=num_samples, replace=False)
    return Windows(windows[np.sort(chosen)], source=text.name, shipped=text.dataset is None)


def read_documents(text: Text) -> Iterator[str]:
    """The documents of a text, in order, without empty ones.

    Raises:
        InvalidInputError: The text is missing, of an unknown kind, or a record has no such field.
    """
    yield from (document for document in _documents(text) if document.strip())


def _documents(text: Text) -> Iterator[str]:
    if text.dataset is None:
        files = [Path(__file__).parent / "data" / _SHIPPED[text.purpose]]
    elif Path(text.dataset).exists():
        files = _files(Path(text.dataset))
    elif Path(text.dataset).suffix in _SUFFIXES or text.dataset.startswith((".", "/")):
        raise InvalidInputError.one(text.dataset, "there is no such file or folder")
    else:
        yield from _hub_documents(text)
        return
    for file in files:
        yield from _READERS[file.suffix](file, text.text_field)


def _files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    known = [file for file in files if file.suffix in _SUFFIXES]
    if not known:
        raise InvalidInputError.one(str(path), f"holds no {', '.join(_SUFFIXES)} file")
    return known


def _read_text(path: Path, _: str) -> Iterator[str]:
    try:
        yield path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError.one(str(path), f"cannot be read: {error}") from None


def _read_jsonl(path: Path, field: str) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _field(json.loads(line), field, f"{path}:{number}")
    except (OSError, ValueError) as error:
        raise InvalidInputError.one(str(path), f"cannot be read: {error}") from None


def _read_parquet(path: Path, field: str) -> Iterator[str]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise InvalidInputError.one(str(path), "needs pyarrow", pip_install("datasets")) from None
    try:
        file = parquet.ParquetFile(path)
        if field not in file.schema_arrow.names:
            columns = ", ".join(file.schema_arrow.names)
            raise InvalidInputError.one(
                str(path), f"has no column {field!r}", f"set text_field to one of: {columns}"
            )
        for batch in file.iter_batches(columns=[field], batch_size=256):
            for number, value in enumerate(batch.column(0).to_pylist()):
                yield _field({field: value}, field, f"{path}: record {number}")
    except (OSError, ArrowInvalid) as error:
        raise InvalidInputError.one(str(path), f"cannot be read: {error}") from None


def _field(record: object, field: str, where: str) -> str:
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        known = ", ".join(record) if isinstance(record, dict) else "none"
        raise InvalidInputError.one(
            where, f"has no text in field {field!r} (fields: {known})", "set text_field"
        )
    return record[field]


_READERS = {".jsonl": _read_jsonl, ".txt": _read_text, ".parquet": _read_parquet}


def _hub_documents(text: Text) -> Iterator[str]:
    """Streams a dataset by name (``name`` or ``name:config``) through the `datasets` library."""
    name, _, config = (text.dataset or "").partition(":")
    try:
        import datasets
    except ImportError:
        raise InvalidInputError.one(
            text.name,
            "there is no such file or folder, and `datasets` is not installed",
            f"{pip_install('datasets')} to load datasets by name",
        ) from None
    try:
        records = datasets.load_dataset(name, config or None, split=text.split, streaming=True)
        for number, record in enumerate(records):
            yield _field(record, text.text_field, f"{text.name}: record {number}")
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidInputError.one(
            text.name, f"is no file or folder, and cannot be loaded as a dataset: {error}"
        ) from None
