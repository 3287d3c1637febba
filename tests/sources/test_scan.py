"""Digest and NaN scan in one pass."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError
from quantlib.sources import scan
from quantlib.sources.scan import count_nonfinite, hash_and_scan

LARGEST = {"BF16": 0x7F7F, "F16": 0x7BFF, "F32": 0x7F7FFFFF}
INFINITY = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_only_nan_and_infinity_count(dtype: str) -> None:
    unsigned = np.uint32 if dtype == "F32" else np.uint16
    sign = 1 << (31 if dtype == "F32" else 15)
    largest, infinity = LARGEST[dtype], INFINITY[dtype]
    finite = [0, sign, 1, largest, largest | sign]
    bad = [infinity, infinity | sign, infinity + 1, infinity | sign | 1, sign * 2 - 1]
    assert count_nonfinite(np.array(finite, unsigned).tobytes(), dtype) == 0
    assert count_nonfinite(np.array(finite + bad, unsigned).tobytes(), dtype) == len(bad)
    assert count_nonfinite(b"", dtype) == 0


@pytest.mark.parametrize(
    ("dtype", "bad"), [("F8_E4M3", 2), ("F8_E5M2", 8), ("F8_E8M0", 1), ("U8", 0), ("I32", 0)]
)
def test_codes_and_exponents_are_looked_at_where_they_can_be_nan(dtype: str, bad: int) -> None:
    assert count_nonfinite(bytes(range(256)), dtype) == bad


def test_counts_across_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_SCAN_ELEMENTS", 8)
    values = np.zeros(50, np.float32)
    values[[0, 7, 8, 49]] = np.nan
    assert count_nonfinite(values.tobytes(), "F32") == 4


def test_one_pass_gives_digest_and_names(write_model, tmp_path, monkeypatch) -> None:
    folder = write_model(tmp_path / "m", dtype="F16", spoil={"blocks.0.b": float("nan")})
    file = folder / "model.safetensors"
    tensors = Checkpoint.open(FolderSource(folder)).tensors.values()
    monkeypatch.setattr(scan, "_CHUNK_BYTES", 48)  # tensors of 128 bytes: uneven chunks
    counted: list[int] = []
    digest, problems = hash_and_scan(file, tensors, counted.append)
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert [str(problem) for problem in problems] == [
        f"{file}: blocks.0.b: holds NaN or Inf in 1 of 64 numbers; "
        "the checkpoint is damaged: fetch or convert it again"
    ]
    assert sum(counted) == 2 * 128


def test_a_file_that_shrinks_is_noticed(write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    tensors = list(Checkpoint.open(FolderSource(folder)).tensors.values())
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InvalidInputError, match="truncated"):
        hash_and_scan(file, tensors, lambda count: None)
