"""What the index says of the shards, and what is so."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quantlib.checkpoint.checkpoint import INDEX_NAME, Checkpoint
from quantlib.checkpoint.index import copy_problems
from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import read_tensor
from quantlib.errors import InvalidInputError
from quantlib.sources.folder import examine_folder
from quantlib.sources.inspection import model_files

SILENT: Any = lambda *_: nullcontext(lambda count: None)  # noqa: E731
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards, each with its own ``a`` and ``b``, and ``c`` in both."""
    for name, tensor, c in ((ONE, "a", 1.0), (TWO, "b", 2.0)):
        save_file({tensor: torch.zeros(4), "c": torch.full((4,), c)}, tmp_path / name)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def index(folder: Path, **weight_map: str) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))


def opened(folder: Path) -> Checkpoint:
    return Checkpoint.open(FolderSource(folder))


def refused(folder: Path) -> str:
    with pytest.raises(InvalidInputError) as caught:
        opened(folder)
    return str(caught.value)


@pytest.mark.parametrize(("file", "value"), [(ONE, 1.0), (TWO, 2.0)])
def test_the_index_says_which_copy_counts(folder: Path, file: str, value: float) -> None:
    index(folder, a=ONE, b=TWO, c=file)
    checkpoint = opened(folder)
    assert read_tensor(checkpoint, "c").tolist() == [value] * 4
    assert [copy.file for copy in checkpoint.copies] == [TWO if file == ONE else ONE]


def test_copies_that_differ_are_refused(folder: Path) -> None:
    """Transformers and vLLM would take one each."""
    index(folder, a=ONE, b=TWO, c=ONE)
    with pytest.raises(InvalidInputError, match=f"c lies in {ONE} too, and the two differ"):
        examine_folder(folder, SILENT)
    save_file({"b": torch.zeros(4), "c": torch.full((4,), 1.0)}, folder / TWO)
    assert examine_folder(folder, SILENT).files[TWO].tensors == 2
    checkpoint = opened(folder)
    assert copy_problems(checkpoint.source, checkpoint.tensors, checkpoint.copies) == []
    save_file({"b": torch.zeros(4), "c": torch.zeros(5)}, folder / TWO)
    assert "the two differ" in refused(folder)


def test_a_copy_that_the_index_is_silent_on(folder: Path) -> None:
    index(folder, a=ONE, b=TWO)
    assert f"does not say which copy of c counts, which lies in {ONE}, {TWO}" in refused(folder)


def test_an_index_that_is_untrue(folder: Path) -> None:
    index(folder, a=TWO, b=TWO, c=ONE, d=ONE)
    found = refused(folder)
    assert f"says that {TWO} holds a, but it lies in {ONE}" in found
    assert f"says that {ONE} holds d, but no shard does" in found


def test_a_whole_file_beside_a_stale_index(folder: Path) -> None:
    """What an older copy leaves: transformers takes the whole file."""
    index(folder, a="gone.safetensors", b=TWO)
    (folder / TWO).unlink()
    save_file({"a": torch.ones(4)}, folder / "model.safetensors")
    checkpoint = opened(folder)
    assert read_tensor(checkpoint, "a").tolist() == [1.0] * 4
    assert model_files(checkpoint) == ("config.json", "model.safetensors", "tokenizer.json")


def test_two_sets_of_weights_are_refused(folder: Path) -> None:
    index(folder, a=ONE, b=TWO, c=ONE)
    save_file({"a": torch.ones(4)}, folder / "model.safetensors")
    found = refused(folder)
    assert "a whole model.safetensors, which transformers would load, and the shards" in found
    assert "remove model.safetensors, or the index and its shards" in found


def test_one_file_with_an_index(folder: Path) -> None:
    save_file({"a": torch.ones(4)}, folder / "model.safetensors")
    index(folder, a="model.safetensors")
    assert set(opened(folder).tensors) == {"a"}


def test_names_that_are_no_files_of_the_folder(folder: Path) -> None:
    index(folder, a="../secret.safetensors", b=TWO)
    assert "names ../secret.safetensors: not the name of a file" in refused(folder)
    index(folder, a="pytorch_model.bin", b=TWO)
    assert "names pytorch_model.bin: not a safetensors file" in refused(folder)
    (folder / INDEX_NAME).write_text('{"weight_map": {}}')
    assert "its weight_map is empty" in refused(folder)


def test_many_missing_shards_are_one_line(folder: Path) -> None:
    index(folder, **{f"t{n}": f"model-{n:05}-of-00300.safetensors" for n in range(1, 301)})
    (line,) = refused(folder).splitlines()
    assert "model-00003-of-00300.safetensors and 297 more, which are missing" in line


def test_shards_without_an_index(folder: Path) -> None:
    assert f"holds {ONE}, {TWO}, but no model.safetensors and no {INDEX_NAME}" in refused(folder)
