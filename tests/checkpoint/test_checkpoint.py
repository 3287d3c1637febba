import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import read_header
from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import read_tensor, read_tensors, write_tensors
from quantlib.errors import InvalidInputError

TENSORS = {
    "a.weight": torch.randn(4, 6).bfloat16(),
    "b.weight": torch.randn(3).half(),
    "c": torch.randn(2, 2, 2),
    "d": torch.arange(5, dtype=torch.int32),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "empty": torch.empty(0, 4),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def refused(folder: Path) -> list[str]:
    with pytest.raises(InvalidInputError) as caught:
        Checkpoint.open(FolderSource(folder))
    return [str(problem) for problem in caught.value.problems]


def test_reads_what_safetensors_wrote(folder: Path) -> None:
    checkpoint = Checkpoint.open(FolderSource(folder))
    assert set(checkpoint.tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        read = read_tensor(checkpoint, name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)


def test_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    digest, count = write_tensors(tmp_path / "out.safetensors", TENSORS)
    assert count == len(TENSORS)
    loaded = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())
    assert write_tensors(tmp_path / "again.safetensors", TENSORS)[0] == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "again.safetensors",
        "out.safetensors",
    ]
    read = read_tensors(FolderSource(tmp_path), "out.safetensors")
    assert list(read) == list(TENSORS)


def test_sharded_checkpoint(tmp_path: Path) -> None:
    names = list(TENSORS)
    shards = {"x.safetensors": names[:3], "y.safetensors": names[3:]}
    weight_map = {}
    for file, held in shards.items():
        save_file({name: TENSORS[name] for name in held}, tmp_path / file)
        weight_map |= dict.fromkeys(held, file)
    (tmp_path / "config.json").write_text("{}")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = Checkpoint.open(FolderSource(tmp_path))
    assert torch.equal(read_tensor(checkpoint, "d"), TENSORS["d"])
    assert checkpoint.info("d").file == "y.safetensors"

    index.write_text(json.dumps({"weight_map": weight_map | {"d": "x.safetensors"}}))
    assert "says that x.safetensors holds d, but it lies in y.safetensors" in refused(tmp_path)[0]
    (tmp_path / "x.safetensors").unlink()
    (tmp_path / "y.safetensors").unlink()
    assert "names x.safetensors, y.safetensors, which are missing" in refused(tmp_path)[0]
    index.write_text("{}")
    assert "has no weight_map" in refused(tmp_path)[0]


def test_truncated_file_names_the_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    assert "truncated: 3 bytes missing" in refused(folder)[0]
    path.write_bytes(path.read_bytes()[:20])
    assert "truncated, or no safetensors file" in refused(folder)[0]
    path.write_bytes(b"abc")
    assert "holds 3 bytes: truncated" in refused(folder)[0]


def with_header(path: Path, header: object, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{nonsense", b"", "not JSON"),
        ([1], b"", "not hold a mapping"),
        ({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"0" * 4, "unknown dtype"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"0" * 4, "cannot hold"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"0" * 4, "whole number"),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"0" * 4, "data_offsets"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"0" * 8, "leaves a gap"),
        (
            {
                "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            },
            b"0" * 4,
            "overlaps",
        ),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"0" * 9, "5 bytes after"),
    ],
)
def test_corrupt_headers_are_refused(
    tmp_path: Path, header: object, data: bytes, message: str
) -> None:
    with_header(tmp_path / "x.safetensors", header, data)
    with pytest.raises(InvalidInputError, match=message):
        read_header(FolderSource(tmp_path), "x.safetensors")


def test_folders_without_a_checkpoint(tmp_path: Path) -> None:
    assert "config.json: is missing" in refused(tmp_path)[0]
    (tmp_path / "config.json").write_text("[]")
    assert "does not hold a mapping" in refused(tmp_path)[0]
    (tmp_path / "config.json").write_text("{}")
    assert "holds no model.safetensors" in refused(tmp_path)[0]
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "pickled weights only (pytorch_model.bin)" in refused(tmp_path)[0]
