"""What makes a set of files a model that can be quantized, judged by headers alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantlib.checkpoint.checkpoint import (
    CONFIG_NAME,
    FLOAT_DTYPES,
    INDEX_NAME,
    WHOLE_DTYPES,
    Checkpoint,
)
from quantlib.checkpoint.index import SINGLE_NAME, adapter_words, listed
from quantlib.checkpoint.source import FileSource
from quantlib.errors import InvalidInputError, Problem
from quantlib.formats.stored import described, plain
from quantlib.store import FileRecord
from quantlib.store.receipt import files_digest

SMALL_FILES = (
    CONFIG_NAME,
    INDEX_NAME,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "tekken.json",
    "tiktoken.model",
    "vocab.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""The files that are taken besides the weights. Code is never among them."""

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_QUANTIZED_ENDINGS = ("weight", "zeros", "scales", "_packed", "_scale", "_zero_point", "g_idx")


def open_model(files: FileSource) -> Checkpoint:
    """Opens a model whose config, index and tensor headers show nothing wrong.

    One that is quantized already is opened as it lies, if it is quantized in a way that is read.

    Args:
        files: The model's files; other files among them do not matter.

    Raises:
        InvalidInputError: It cannot be quantized; all problems at once.
    """
    names = files.names()
    root = files.describe("").rstrip("/")
    if not names:
        raise InvalidInputError.one(root, "is empty", "give a folder with a model checkpoint")
    if CONFIG_NAME not in names and "adapter_config.json" in names:
        raise InvalidInputError.one(root, *adapter_words(files, names))
    checkpoint = Checkpoint.open(files)
    problems = _config_problems(files.describe(CONFIG_NAME), checkpoint.config)
    try:
        read = plain(checkpoint)
        if not problems:
            problems = _dtype_problems(read)
    except InvalidInputError as error:
        problems += error.problems
    if problems:
        raise InvalidInputError(problems)
    return checkpoint


def tokenizer_problems(files: FileSource) -> list[Problem]:
    """That a model has no tokenizer, which is needed wherever it is given text.

    Of what is no model, other things are said.
    """
    names = files.names()
    if CONFIG_NAME not in names or any(name in names for name in _VOCABULARIES):
        return []
    root = files.describe("").rstrip("/")
    return [Problem(root, "has no tokenizer", f"add {' or '.join(_VOCABULARIES)}")]


@dataclass(frozen=True)
class Kind:
    """What a model is, by its config and headers.

    Attributes:
        model_type: The config's.
        quantized: How its weights lie quantized, in words; None where they do not.
    """

    model_type: str
    quantized: str | None = None


def kind_of(checkpoint: Checkpoint) -> Kind:
    """What a model is, which :func:`open_model` has opened."""
    return Kind(str(checkpoint.config["model_type"]), described(checkpoint))


def model_files(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The files of a model that are taken: the weights that it uses and the small files."""
    weights = {info.file for info in (*checkpoint.tensors.values(), *checkpoint.copies)}
    taken = {*weights, *SMALL_FILES}
    if weights == {SINGLE_NAME}:
        taken.discard(INDEX_NAME)  # which may be of shards that are gone
    return tuple(name for name in checkpoint.source.names() if name in taken)


def model_facts(
    source: Mapping[str, Any], kind: Kind, files: Mapping[str, FileRecord]
) -> dict[str, Any]:
    """What the receipt of a fetched model says of it.

    Args:
        source: Where the model is from, in words that hold wherever it lay.
        kind: What it is.
        files: The model's files.

    Returns:
        ``source`` (with ``quantized``, in words, where it is so already), ``model_type``,
        ``digest`` (over all files), ``bytes`` and ``tensors`` (of the weight files).
    """
    weights = [record for record in files.values() if record.tensors is not None]
    return {
        "source": dict(source) | ({"quantized": kind.quantized} if kind.quantized else {}),
        "model_type": kind.model_type,
        "digest": files_digest(files),
        "bytes": sum(record.bytes for record in weights),
        "tensors": sum(record.tensors or 0 for record in weights),
    }


def _config_problems(where: str, config: Mapping[str, Any]) -> list[Problem]:
    problems = []
    if not isinstance(config.get("model_type"), str):
        problems.append(
            Problem(where, "names no model_type", "give a folder with a language model")
        )
    return problems


def _dtype_problems(checkpoint: Checkpoint) -> list[Problem]:
    if not checkpoint.tensors:
        return [Problem(checkpoint.source.describe("").rstrip("/"), "its weight files are empty")]
    by_dtype: dict[str, list[str]] = defaultdict(list)
    for name, info in checkpoint.tensors.items():
        if info.dtype not in FLOAT_DTYPES:
            by_dtype[info.dtype].append(name)
    problems = []
    for dtype, names in sorted(by_dtype.items()):
        where = checkpoint.source.describe(checkpoint.info(names[0]).file)
        found = f"{dtype} in {listed(names)}"
        weights = [name for name in names if name.endswith(_QUANTIZED_ENDINGS)]
        known = ", ".join(FLOAT_DTYPES)
        whole = dtype.startswith(WHOLE_DTYPES)
        if dtype.startswith("F8") or (weights and whole):
            problems.append(_quantized(where, found))
        elif not whole:  # tables and buffers stay as they are
            problems.append(Problem(where, found, f"convert it to one of {known}"))
    return problems


def _quantized(where: str, evidence: str) -> Problem:
    what = f"is quantized already: {evidence}, and its config does not say how"
    return Problem(where, what, "give the original checkpoint")
