"""A checkpoint as a whole: its config and its tensors over all files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from quantlib.checkpoint.header import REFETCH, TensorInfo, read_header
from quantlib.checkpoint.source import FileSource
from quantlib.errors import InvalidInputError, Problem, StoreError
from quantlib.foreign_json import parse_mapping

CONFIG_NAME = "config.json"
SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_MAX_JSON_BYTES = 100_000_000
FLOAT_DTYPES = ("BF16", "F16", "F32")
"""The dtypes that an unquantized weight may have."""


@dataclass(frozen=True)
class Checkpoint:
    """A model's config and where each of its tensors lies.

    Attributes:
        source: Where the files are.
        config: The parsed ``config.json``.
        tensors: Every tensor by name.
    """

    source: FileSource
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, source: FileSource) -> Checkpoint:
        """Reads the config, the index and the headers; no weight.

        Raises:
            InvalidInputError: Something of it is missing or damaged; all problems at once.
        """
        config: dict[str, Any] = {}
        tensors: dict[str, TensorInfo] = {}
        problems: list[Problem] = []
        try:
            config = read_config(source)
        except InvalidInputError as error:
            problems += error.problems
        try:
            index = _read_index(source)
            names = weight_files(source, index)
        except InvalidInputError as error:
            raise InvalidInputError([*problems, *error.problems]) from None
        for name in names:
            try:
                tensors |= read_header(source, name)
            except InvalidInputError as error:
                problems += error.problems
        if not problems:
            problems += _index_problems(source, index, tensors)
        if problems:
            raise InvalidInputError(problems)
        return cls(source=source, config=config, tensors=tensors)

    def read(self, name: str) -> bytearray:
        """The bytes of one tensor."""
        info = self.info(name)
        return self.source.read(info.file, info.start, info.bytes)

    def info(self, name: str) -> TensorInfo:
        """Where a tensor lies.

        Raises:
            InvalidInputError: The checkpoint has no such tensor.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise InvalidInputError.one(
                self.source.describe(CONFIG_NAME).removesuffix(CONFIG_NAME),
                f"holds no tensor {name!r}",
                "the config does not belong to these weights",
            ) from None

    def bytes_of(self, names: Iterable[str]) -> int:
        """Bytes of some tensors together."""
        return sum(self.info(name).bytes for name in names)


def read_config(source: FileSource) -> dict[str, Any]:
    """The parsed ``config.json``.

    Raises:
        InvalidInputError: It is missing, unreadable or no JSON mapping.
    """
    where = source.describe(CONFIG_NAME)
    if CONFIG_NAME not in source.names():
        raise InvalidInputError.one(where, "is missing", "give a folder with a model checkpoint")
    return _read_json(source, CONFIG_NAME)


def weight_files(source: FileSource, index: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The safetensors files of a checkpoint.

    Args:
        source: Where the files are.
        index: The parsed index, or None for a checkpoint in a single file.

    Raises:
        InvalidInputError: There are none, or the index names files that are missing.
    """
    names = source.names()
    if index is None:
        if SINGLE_NAME in names:
            return (SINGLE_NAME,)
        raise InvalidInputError.one(source.describe(""), *_no_weights(names))
    wanted = sorted(set(index["weight_map"].values()))
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InvalidInputError(
            Problem(source.describe(INDEX_NAME), f"names {name}, which is missing", REFETCH)
            for name in missing
        )
    return tuple(wanted)


def _no_weights(names: tuple[str, ...]) -> tuple[str, str]:
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    if pickled:
        return (
            f"holds pickled weights only ({', '.join(pickled[:3])})",
            "convert them to safetensors: pickled files can run code and are not read",
        )
    return f"holds no {SINGLE_NAME} and no {INDEX_NAME}", "give a folder with a model checkpoint"


def _read_index(source: FileSource) -> dict[str, Any] | None:
    if INDEX_NAME not in source.names():
        return None
    index = _read_json(source, INDEX_NAME)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) and "/" not in file for file in weight_map.values()
    ):
        raise InvalidInputError.one(
            source.describe(INDEX_NAME), "has no weight_map of tensor names to file names"
        )
    return index


def _read_json(source: FileSource, name: str) -> dict[str, Any]:
    where = source.describe(name)
    try:
        if (size := source.size(name)) > _MAX_JSON_BYTES:
            raise InvalidInputError.one(where, f"holds {size} bytes: too many to be read")
        data = source.read(name)
    except StoreError as error:
        raise InvalidInputError.one(where, f"cannot be read: {error}") from None
    return parse_mapping(data, where)


def _index_problems(
    source: FileSource, index: Mapping[str, Any] | None, tensors: Mapping[str, TensorInfo]
) -> list[Problem]:
    if index is None:
        return []
    where = source.describe(INDEX_NAME)
    return [
        Problem(where, f"says that {file} holds {name}, but it does not", REFETCH)
        for name, file in index["weight_map"].items()
        if name not in tensors or tensors[name].file != file
    ]
