"""Models in folders: what is refused, what is taken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.writer import SafetensorsWriter
from quantlib.errors import InvalidInputError
from quantlib.sources.folder import examine_folder, folder_problems
from quantlib.sources.inspection import tokenizer_problems
from quantlib.store import StepOutput
from quantlib.store.partial import Partial


def said(folder: Path) -> str:
    return "\n".join(map(str, folder_problems(folder)))


def test_a_sound_model_has_no_problems(write_model, tmp_path: Path) -> None:
    for dtype in ("BF16", "F16", "F32"):
        for shards in (1, 3):
            folder = write_model(tmp_path / f"{dtype}-{shards}", dtype=dtype, shards=shards)
            assert folder_problems(folder) == []


def test_no_model_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no such folder" in said(tmp_path / "none")
    monkeypatch.chdir(tmp_path)
    assert "hf://org/tiny for a model on the hub" in said(Path("org/tiny"))
    (tmp_path / "empty").mkdir()
    assert "is empty" in said(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    assert "is not a folder" in said(tmp_path / "file")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert "is an adapter" in said(adapter)
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (adapter / "adapter_model.safetensors").write_text("")
    (adapter / "config.json").write_text('{"model_type": "llama"}')
    assert (
        "is an adapter, not a model: holds adapter_config.json, adapter_model.safetensors; merge "
        "it into its base model (org/base) first" in said(adapter)
    )
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "README.md").write_text("hello")
    assert "config.json: is missing" in said(notes)


def test_what_a_clone_without_git_lfs_has_is_named(write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid x")
    assert "is a pointer of Git LFS, not the file itself; run git lfs pull" in said(folder)


@pytest.mark.parametrize(
    ("encoding", "message"),
    [("utf-8-sig", "byte order mark"), ("utf-16", "byte order mark"), ("latin-1", "is not UTF-8")],
)
def test_a_config_that_transformers_cannot_read_is_refused(
    write_model, tmp_path: Path, encoding: str, message: str
) -> None:
    folder = write_model(tmp_path / "m")
    text = (folder / "config.json").read_text().replace("llama", "llamä")
    (folder / "config.json").write_text(text, encoding=encoding)
    assert message in said(folder)


def test_other_spellings_and_empty_files(write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "config.json").rename(folder / "Config.json")
    assert "config.json: is missing; rename Config.json" in said(folder)
    (folder / "Config.json").unlink()
    (folder / "config.json").write_text("")
    assert "config.json: is empty" in said(folder)


def test_pickled_weights_are_refused(write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickled weights only (pytorch_model.bin)" in said(folder)
    assert "convert them to safetensors" in said(folder)


def test_damaged_files_are_named(write_model, tmp_path: Path) -> None:
    truncated = write_model(tmp_path / "truncated") / "model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-1])
    assert f"{truncated}: blocks.0.b: truncated" in said(truncated.parent)
    corrupt = write_model(tmp_path / "corrupt") / "model.safetensors"
    corrupt.write_bytes(corrupt.read_bytes()[:8] + b"x" * 400)
    assert f"{corrupt}: " in said(corrupt.parent)
    sharded = write_model(tmp_path / "sharded", shards=3)
    for shard in (1, 3):
        (sharded / f"model-{shard:05}-of-00003.safetensors").unlink()
    names = "model-00001-of-00003.safetensors, model-00003-of-00003.safetensors"
    assert f"names {names}, which are missing" in said(sharded)


def test_a_model_that_is_quantized_in_a_way_that_is_not_read_is_refused(
    write_model, tmp_path: Path
) -> None:
    marked = write_model(
        tmp_path / "marked", config={"quantization_config": {"quant_method": "hqq"}}
    )
    assert "quantization_config: says quant_method 'hqq', which is not read" in said(marked)
    folder = write_model(tmp_path / "fp8", dtype="F8_E4M3")
    assert "is quantized already: F8_E4M3 in blocks.0.a, blocks.0.b" in said(folder)
    assert "give the original checkpoint" in said(folder)


def test_whole_numbers_are_called_quantized_where_they_are_weights(write_model, tmp_path) -> None:
    folder = write_model(tmp_path / "m")
    with SafetensorsWriter(folder / "model.safetensors") as writer:
        writer.add("blocks.0.q_proj.qweight", "I32", [2], bytes(8))
        writer.add("position_ids", "I64", [2], bytes(16))
        writer.finish()
    assert "is quantized already: I32 in blocks.0.q_proj.qweight" in said(folder)
    assert "position_ids" not in said(folder)


@pytest.mark.parametrize(
    "stated", [None, {}, {"quant_method": None}, {"quant_method": "none", "bits": 16}]
)
def test_a_config_that_names_no_quantization_is_of_an_unquantized_model(
    write_model, tmp_path: Path, stated: object
) -> None:
    config = {"quantization_config": stated, "compression_config": stated}
    assert folder_problems(write_model(tmp_path / "m", config=config)) == []


def test_other_dtypes_are_refused(write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", dtype="F64")
    assert "F64 in blocks.0.a, blocks.0.b; convert it to one of BF16, F16, F32" in said(folder)


def test_a_config_without_model_type(write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps({"hidden_size": 8}))
    assert "names no model_type" in said(folder)


def test_only_text_needs_a_tokenizer(write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    assert tokenizer_problems(FolderSource(folder)) == []
    (folder / "tokenizer.json").unlink()
    assert folder_problems(folder) == []
    (problem,) = tokenizer_problems(FolderSource(folder))
    assert str(problem).startswith(f"{folder}: has no tokenizer; add tokenizer.json or ")


def test_every_spoiled_tensor_is_named(write_model, silent, tmp_path: Path) -> None:
    spoil = {"blocks.0.a": float("inf"), "blocks.2.b": float("nan")}
    folder = write_model(tmp_path / "m", shards=3, spoil=spoil)
    assert folder_problems(folder) == []
    with pytest.raises(InvalidInputError) as refused:
        examine_folder(folder, silent)
    assert [problem.where.rsplit(" ")[-1] for problem in refused.value.problems] == list(spoil)


def test_only_the_models_own_files_are_taken(write_model, silent, store, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", shards=2)
    for name in ("modeling_tiny.py", "pytorch_model.bin", "consolidated.safetensors", "README.md"):
        (folder / name).write_bytes(b"not taken")
    (folder / "merges.txt").write_text("h e")
    model = examine_folder(folder, silent)
    assert sorted(model.files) == [
        "config.json",
        "merges.txt",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    output = StepOutput(store, tmp_path, Partial(store, "fetch", "x"), "runs/fetch/x")
    model.import_into(output)
    for name, record in model.files.items():
        assert store.read(output.files[name].blob) == (folder / name).read_bytes()
        assert output.files[name] == record
    assert model.files["model-00001-of-00002.safetensors"].tensors == 2


def test_symbolic_links_are_followed(write_model, silent, store, tmp_path: Path) -> None:
    """The snapshot of a hub cache is a folder of links to files without suffixes."""
    folder = write_model(tmp_path / "m")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for index, file in enumerate(sorted(folder.iterdir())):
        blob = file.rename(tmp_path / f"blob{index}")
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    output = StepOutput(store, tmp_path, Partial(store, "fetch", "x"), "runs/fetch/x")
    examine_folder(snapshot, silent).import_into(output)
    for name in output.files:
        copy = store.local_path(output.files[name].blob)
        assert copy.is_file()
        assert not copy.is_symlink()
