"""Makes a folder with a model that came in another dress one that an engine loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from quantlib.checkpoint.checkpoint import CONFIG_NAME, INDEX_NAME, Checkpoint
from quantlib.checkpoint.header import read_header
from quantlib.checkpoint.index import read_json
from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.writer import SafetensorsWriter, encode_header
from quantlib.formats.compressed_cache import CACHE_SCALES, of_attention_alone
from quantlib.formats.stored import plain
from quantlib.models.servable import servable_config, with_causal_architecture

SHARD_BYTES = 4 << 30
"""Of a file of a plain model."""


def make_plain(folder: Path, *, cached: bool = False) -> None:
    """Replaces a quantized model by the plain one that it stands for; another one stays.

    Args:
        folder: Holds the model. Links in it are replaced, not written through.
        cached: Whether what it says of keys and values stays: one of compressed-tensors.
    """
    stored = Checkpoint.open(FolderSource(folder))
    read = plain(stored)
    if read is stored:
        return
    if cached:
        scales = {
            name: info
            for name, info in stored.tensors.items()
            if name.rpartition(".")[2] in CACHE_SCALES
        }
        given = of_attention_alone(stored.config["quantization_config"])
        config = {**read.config, "quantization_config": given}
        read = replace(read, tensors={**read.tensors, **scales}, config=config)
    weight_map = {}
    for number, names in enumerate(_shards(read)):
        shard = f"plain-{number:05}.safetensors"
        with SafetensorsWriter(folder / shard) as writer:
            for name in names:
                info = read.info(name)
                writer.add_pieces(name, info.dtype, info.shape, read.pieces(name))
                weight_map[name] = shard
            writer.finish()
    for name in {info.file for info in (*stored.tensors.values(), *stored.copies)}:
        (folder / name).unlink()
    _write_json(folder / INDEX_NAME, {"metadata": {}, "weight_map": weight_map})
    _write_json(folder / CONFIG_NAME, read.config)


def _shards(checkpoint: Checkpoint) -> Iterator[list[str]]:
    """The names of the tensors, file by file."""
    names: list[str] = []
    for name in checkpoint.tensors:
        if names and checkpoint.bytes_of((*names, name)) > SHARD_BYTES:
            yield names
            names = []
        names.append(name)
    yield names


def make_servable(folder: Path, renamed: Mapping[str, Sequence[str]]) -> None:
    """Rewrites config, index and headers where they differ from what vLLM reads; most need none.

    Args:
        folder: Holds the model. Links in it are replaced, not written through.
        renamed: The names that vLLM knows, for tensors that are stored by others: one, or those of
            equal parts that lie one after the other.
    """
    source = FolderSource(folder)
    checkpoint = Checkpoint.open(source)
    config = with_causal_architecture(servable_config(checkpoint))
    if config != checkpoint.config:
        _write_json(folder / CONFIG_NAME, config)
    if not renamed:
        return
    for name in {info.file for info in (*checkpoint.tensors.values(), *checkpoint.copies)}:
        _rename_in(folder, name, renamed)
    if INDEX_NAME in source.names():
        index = read_json(source, INDEX_NAME)
        weight_map = index["weight_map"].items()
        index["weight_map"] = {
            new: file for name, file in weight_map for new in renamed.get(name, (name,))
        }
        _write_json(folder / INDEX_NAME, index)


def _rename_in(folder: Path, name: str, renamed: Mapping[str, Sequence[str]]) -> None:
    """Writes a safetensors file again with tensors under other names; the data stays the same."""
    header = read_header(FolderSource(folder), name)
    path, new = folder / name, folder / f"{name}.renamed"
    with path.open("rb") as file, new.open("wb") as target:
        data = 8 + int.from_bytes(file.read(8), "little")
        entries = {
            part.name: {
                "dtype": part.dtype,
                "shape": part.shape,
                "data_offsets": [part.start - data, part.end - data],
            }
            for tensor, info in header.items()
            for part in info.parts(renamed.get(tensor, (tensor,)))
        }
        target.write(encode_header(entries))
        file.seek(data)
        shutil.copyfileobj(file, target, 16 << 20)
    new.replace(path)


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(dict(value)), encoding="utf-8")
