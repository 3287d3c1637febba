"""Makes a folder with a model that came in another dress one that vLLM loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from quantlib.checkpoint.checkpoint import CONFIG_NAME, INDEX_NAME, Checkpoint
from quantlib.checkpoint.index import read_json
from quantlib.checkpoint.source import FolderSource
from quantlib.models import model_registry
from quantlib.models.servable import renamed_tensors, servable_config, with_causal_architecture


def make_servable(folder: Path) -> None:
    """Rewrites config, index and headers where they differ from what vLLM reads; most need none.

    Args:
        folder: Holds the model. Links in it are replaced, not written through.
    """
    source = FolderSource(folder)
    checkpoint = Checkpoint.open(source)
    config = with_causal_architecture(servable_config(checkpoint))
    if config != checkpoint.config:
        _write_json(folder / CONFIG_NAME, config)
    renamed = renamed_tensors(checkpoint, model_registry.adapter_for(config))
    if not renamed:
        return
    for name in {info.file for info in (*checkpoint.tensors.values(), *checkpoint.copies)}:
        _rename_in(folder / name, renamed)
    if INDEX_NAME in source.names():
        index = read_json(source, INDEX_NAME)
        weight_map = index["weight_map"].items()
        index["weight_map"] = {renamed.get(name, name): file for name, file in weight_map}
        _write_json(folder / INDEX_NAME, index)


def _rename_in(path: Path, renamed: Mapping[str, str]) -> None:
    """Writes a safetensors file again with tensors under other names; the data stays the same."""
    new = path.with_name(f"{path.name}.renamed")
    with path.open("rb") as file, new.open("wb") as target:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        text = json.dumps({renamed.get(name, name): entry for name, entry in header.items()})
        data = text.encode()
        data += b" " * (-len(data) % 8)
        target.write(len(data).to_bytes(8, "little") + data)
        shutil.copyfileobj(file, target, 16 << 20)
    new.replace(path)


def _write_json(path: Path, value: object) -> None:
    path.unlink()
    path.write_text(json.dumps(value), encoding="utf-8")
