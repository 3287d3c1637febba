"""A checkpoint as a whole: its config and its tensors over all files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantlib.checkpoint.header import TensorInfo, read_header
from quantlib.checkpoint.index import (
    INDEX_NAME,
    SINGLE_NAME,
    place_tensors,
    read_json,
    read_weight_map,
)
from quantlib.checkpoint.source import FileSource
from quantlib.errors import InvalidInputError, Problem, StoreError

__all__ = ["CONFIG_NAME", "FLOAT_DTYPES", "INDEX_NAME", "WHOLE_DTYPES", "Checkpoint", "read_config"]

CONFIG_NAME = "config.json"
_PIECE_BYTES = 1 << 28
_LFS_POINTER = b"version https://git-lfs"
FLOAT_DTYPES = ("BF16", "F16", "F32")
"""The dtypes that an unquantized weight may have."""

WHOLE_DTYPES = ("I", "U", "BOOL")
"""What the names of dtypes for whole numbers begin with."""


@dataclass(frozen=True)
class Checkpoint:
    """A model's config and where each of its tensors lies.

    Attributes:
        source: Where the files are.
        config: The parsed ``config.json``.
        tensors: Every tensor by the name that it goes by; it may be stored by another.
        copies: Where tensors lie once more, of which the index says that they do not count.
        quantized_bytes: Of all tensors as they are stored, where these are what quantized ones
            stand for; None where they lie there like this.
    """

    source: FileSource
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    copies: tuple[TensorInfo, ...] = ()
    quantized_bytes: int | None = None

    @classmethod
    def open(cls, source: FileSource) -> Checkpoint:
        """Reads the config, the index and the headers; no weight.

        Raises:
            InvalidInputError: Something of it is missing or damaged; all problems at once.
        """
        config: dict[str, Any] = {}
        problems: list[Problem] = []
        try:
            config = read_config(source)
        except InvalidInputError as error:
            problems += error.problems
        try:
            weight_map = read_weight_map(source)
        except InvalidInputError as error:
            raise InvalidInputError([*problems, *error.problems]) from None
        headers = {}
        for name in (SINGLE_NAME,) if weight_map is None else sorted(set(weight_map.values())):
            try:
                _refuse_pointer(source, name)
                headers[name] = read_header(source, name)
            except InvalidInputError as error:
                problems += error.problems
        if problems:
            raise InvalidInputError(problems)
        tensors, copies, problems = place_tensors(source, weight_map, headers)
        if problems:
            raise InvalidInputError(problems)
        return cls(source=source, config=config, tensors=tensors, copies=copies)

    def renamed(self, names: Mapping[str, Sequence[str]]) -> Checkpoint:
        """The same by other names.

        Args:
            names: By name: another, or those of equal parts that lie one after the other. Those
                that are not given stay.
        """
        tensors: dict[str, TensorInfo] = {}
        for name, info in self.tensors.items():
            new = names.get(name, (name,))
            infos = [info] if len(new) == 1 else info.parts(new)  # a whole one keeps its own name
            tensors.update(zip(new, infos, strict=True))
        return replace(self, tensors=tensors)

    def read(self, name: str) -> bytearray:
        """The bytes of one tensor."""
        info = self.info(name)
        return self.source.read(info.file, info.start, info.bytes)

    def pieces(self, name: str) -> Iterator[bytearray]:
        """The bytes of one tensor, some hundred MiB at a time."""
        info = self.info(name)
        for start in range(info.start, info.end, _PIECE_BYTES):
            yield self.source.read(info.file, start, min(_PIECE_BYTES, info.end - start))

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
    where, names = source.describe(CONFIG_NAME), source.names()
    if CONFIG_NAME not in names:
        remedy = "give a folder with a model checkpoint"
        if other := next((name for name in names if name.lower() == CONFIG_NAME), None):
            remedy = f"rename {other}"
        raise InvalidInputError.one(where, "is missing", remedy)
    return read_json(source, CONFIG_NAME)


def _refuse_pointer(source: FileSource, name: str) -> None:
    """Refuses what a clone without Git LFS has in place of a weight file."""
    try:
        start = source.read(name, 0, min(source.size(name), len(_LFS_POINTER)))
    except StoreError as error:
        raise InvalidInputError.one(source.describe(name), f"cannot be read: {error}") from None
    if start == _LFS_POINTER:
        raise InvalidInputError.one(
            source.describe(name),
            "is a pointer of Git LFS, not the file itself",
            "run git lfs pull in the clone",
        )
