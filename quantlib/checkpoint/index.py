"""Which safetensors files a checkpoint consists of, and which of them holds which tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from quantlib.checkpoint.header import REFETCH, TensorInfo
from quantlib.checkpoint.source import FileSource
from quantlib.errors import InvalidInputError, Problem, StoreError
from quantlib.runtime.foreign_json import parse_mapping

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_MAX_JSON_BYTES = 100_000_000
_NAMED = 3


def read_json(source: FileSource, name: str) -> dict[str, Any]:
    """A JSON mapping, as strictly as transformers and vLLM read it: UTF-8 without a mark before it.

    Raises:
        InvalidInputError: The file cannot be read or is no such mapping.
    """
    where = source.describe(name)
    try:
        if (size := source.size(name)) > _MAX_JSON_BYTES:
            raise InvalidInputError.one(where, f"holds {size} bytes: too many to be read")
        data = bytes(source.read(name))
    except StoreError as error:
        raise InvalidInputError.one(where, f"cannot be read: {error}") from None
    if data.startswith(_BYTE_ORDER_MARKS):
        raise InvalidInputError.one(
            where,
            "begins with a byte order mark, with which neither transformers nor vLLM reads it",
            "save it as UTF-8 without one",
        )
    if not data.strip():
        raise InvalidInputError.one(where, "is empty", REFETCH)
    return parse_mapping(data, where, infinite=True)


def read_weight_map(source: FileSource) -> dict[str, str] | None:
    """Which file holds which tensor by the index; None where the weights are in a single file.

    As transformers has it, a whole ``model.safetensors`` beside an index of shards that are gone is
    the model.

    Raises:
        InvalidInputError: There are no weights, the index is damaged or names files that are
            missing, or there are two sets of weights.
    """
    names = source.names()
    if INDEX_NAME not in names:
        if SINGLE_NAME in names:
            return None
        raise InvalidInputError.one(source.describe("").rstrip("/"), *_no_weights(source, names))
    where = source.describe(INDEX_NAME)
    weight_map = read_json(source, INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise InvalidInputError.one(where, "has no weight_map of tensor names to file names")
    if not weight_map:
        raise InvalidInputError.one(where, "its weight_map is empty", REFETCH)
    files = sorted(set(weight_map.values()))
    if problems := _file_problems(where, files):
        raise InvalidInputError(problems)
    missing = [name for name in files if name not in names]
    if SINGLE_NAME in names and SINGLE_NAME not in files:
        if len(missing) == len(files):
            return None
        raise InvalidInputError.one(
            source.describe("").rstrip("/"),
            f"holds two sets of weights: a whole {SINGLE_NAME}, which transformers would load, and "
            f"the shards that {INDEX_NAME} names ({listed(files)}), which vLLM would",
            f"remove {SINGLE_NAME}, or the index and its shards",
        )
    if missing:
        verb = "are" if len(missing) > 1 else "is"
        raise InvalidInputError.one(
            where, f"names {listed(missing)}, which {verb} missing", REFETCH
        )
    return weight_map


def _file_problems(where: str, files: Sequence[str]) -> list[Problem]:
    outside = [name for name in files if "/" in name or "\\" in name or name in ("", ".", "..")]
    others = [name for name in files if name not in outside and not name.endswith(".safetensors")]
    problems = []
    if outside:
        problems.append(
            Problem(where, f"names {listed(outside)}: not the name of a file in the same folder")
        )
    if others:
        problems.append(Problem(where, f"names {listed(others)}: not a safetensors file"))
    return problems


def place_tensors(
    source: FileSource,
    weight_map: Mapping[str, str] | None,
    headers: Mapping[str, Mapping[str, TensorInfo]],
) -> tuple[dict[str, TensorInfo], tuple[TensorInfo, ...], list[Problem]]:
    """Where each tensor is read from.

    Of a tensor that lies in several files the index says which copy counts.

    Args:
        source: Where the files are, for messages.
        weight_map: What the index says.
        headers: The tensors of each file.

    Returns:
        Every tensor by name, the copies that do not count, and what is wrong.
    """
    found: dict[str, list[TensorInfo]] = defaultdict(list)
    for header in headers.values():
        for name, info in header.items():
            found[name].append(info)
    where = source.describe(INDEX_NAME)
    problems = []
    for name, file in (weight_map or {}).items():
        if name not in headers[file]:
            held = [info.file for info in found.get(name, ())]
            lies = f"it lies in {listed(held)}" if held else "no shard does"
            problems.append(Problem(where, f"says that {file} holds {name}, but {lies}", REFETCH))
    tensors, others = {}, []
    for name, copies in found.items():
        said = (weight_map or {}).get(name)
        taken = next((info for info in copies if info.file == said), None)
        if taken is None:
            taken = copies[0]
            if len(copies) > 1 and said is None:
                problems.append(
                    Problem(
                        where,
                        f"does not say which copy of {name} counts, which lies in "
                        f"{listed([info.file for info in copies])}",
                        "add it to the weight_map",
                    )
                )
        tensors[name] = taken
        for other in copies:
            if other is taken:
                continue
            others.append(other)
            if (other.dtype, other.shape) != (taken.dtype, taken.shape):
                problems.append(_differs(source, taken, other))
    return tensors, tuple(others), problems


def copy_problems(
    source: FileSource, tensors: Mapping[str, TensorInfo], copies: Sequence[TensorInfo]
) -> list[Problem]:
    """Which tensors lie in two files with different numbers; reads both copies.

    transformers takes the copy that the index names, vLLM the one that it reads last.
    """
    return [
        _differs(source, tensors[other.name], other)
        for other in copies
        if not same_bytes(source, tensors[other.name], other)
    ]


def same_bytes(source: FileSource, one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors hold the same; reads both, a piece at a time."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    chunk = 16 << 20
    for offset in range(0, one.bytes, chunk):
        length = min(chunk, one.bytes - offset)
        read = source.read(one.file, one.start + offset, length)
        if read != source.read(other.file, other.start + offset, length):
            return False
    return True


def _differs(source: FileSource, taken: TensorInfo, other: TensorInfo) -> Problem:
    return Problem(
        source.describe(other.file),
        f"{other.name} lies in {taken.file} too, and the two differ",
        "remove the wrong one: transformers takes the copy that the index names, vLLM the last",
    )


def _no_weights(source: FileSource, names: Sequence[str]) -> tuple[str, str]:
    adapters = [name for name in names if name.startswith("adapter_")]
    if adapters:
        return adapter_words(source, names)
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    if pickled:
        return (
            f"holds pickled weights only ({listed(pickled)})",
            "convert them to safetensors: pickled files can run code and are not read",
        )
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return (
            f"holds {listed(others)}, but no {SINGLE_NAME} and no {INDEX_NAME}, which says what is "
            "in which file",
            "add the index, or fetch the model again",
        )
    return f"holds no {SINGLE_NAME} and no {INDEX_NAME}", "give a folder with a model checkpoint"


def adapter_words(source: FileSource, names: Sequence[str]) -> tuple[str, str]:
    """What is said of a folder with an adapter (LoRA) in place of a model, and what helps."""
    base = "its base model"
    try:
        stated = read_json(source, "adapter_config.json").get("base_model_name_or_path")
        if isinstance(stated, str) and stated:
            base += f" ({stated})"
    except InvalidInputError:
        pass
    held = listed([name for name in names if name.startswith("adapter_")])
    return (
        f"is an adapter, not a model: holds {held}",
        f"merge it into {base} first, as peft's merge_and_unload() does, and give the result",
    )


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    text = ", ".join(names[:_NAMED])
    return text if len(names) <= _NAMED else f"{text} and {len(names) - _NAMED} more"
