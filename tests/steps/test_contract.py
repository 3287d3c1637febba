"""How a step reads what its runner hands it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from quantlib.errors import InvalidInputError
from quantlib.steps.contract import StepCall
from quantlib.store import Receipt


def receipt(name: str) -> Receipt:
    return Receipt(
        step="quantize", key="0" * 64, code={}, parameters={"range": name}, inputs={}, files={}
    )


def write(path: Path, name: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(receipt(name).to_json())
    return path


def call(paths: Iterable[Path]) -> StepCall:
    artifacts = [{"uri": f"file://{path}"} for path in paths]
    inputs = {"artifacts": {"quantized": {"artifacts": artifacts}}}
    return StepCall.parse(json.dumps({"inputs": inputs, "outputs": {"outputFile": "/nowhere"}}))


def test_an_artifact_that_is_a_folder_stands_for_the_files_in_it(tmp_path: Path) -> None:
    for name in ("4:6", "0:2", "2:4"):
        write(tmp_path / "parts" / name, name)
    last = write(tmp_path / "last", "6:8")
    receipts = call([tmp_path / "parts", last]).receipts("quantized")
    assert [each.parameters["range"] for each in receipts] == ["0:2", "2:4", "4:6", "6:8"]


def test_a_folder_of_anything_else_is_refused_by_the_file(tmp_path: Path) -> None:
    write(tmp_path / "parts" / "a", "a")
    (tmp_path / "parts" / "b").mkdir()
    with pytest.raises(InvalidInputError, match="parts/b cannot be read: Is a directory"):
        call([tmp_path / "parts"]).receipts("quantized")


def test_an_artifact_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="nothing cannot be read: No such file"):
        call([tmp_path / "nothing"]).receipts("quantized")
