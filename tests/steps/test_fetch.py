"""The fetch step: receipts, and its contract with the pipeline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import ReceiptSource
from quantlib.checkpoint.writer import SafetensorsWriter
from quantlib.errors import InvalidInputError, StepError
from quantlib.recipe import AskedRecipe
from quantlib.steps.contract import StepCall
from quantlib.steps.fetch import fetch, main
from quantlib.store import LocalStore, Receipt
from quantlib.watching.jobs import resolve_release

TENSORS = ("model.embed_tokens.weight", "model.norm.weight")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def write_model(folder: Path, value: int = 0x3F80) -> Path:
    """A bf16 model of two tensors, all of whose numbers have the bits ``value``."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    with SafetensorsWriter(folder / "model.safetensors") as writer:
        for name in TENSORS:
            writer.add(name, "BF16", [4, 8], np.full(32, value, np.uint16).tobytes())
        writer.finish()
    return folder


def executor_input(folder: Path, **parameters: str) -> str:
    return json.dumps(
        {
            "inputs": {"parameterValues": parameters},
            "outputs": {
                "outputFile": str(folder / "executor.json"),
                "parameters": {"checked_recipe": {"outputFile": str(folder / "recipe.json")}},
                "artifacts": {
                    "model": {"artifacts": [{"uri": str(folder / "model.json")}]},
                    "texts": {"artifacts": [{"uri": str(folder / "texts.json")}]},
                    "fetch_summary": {"artifacts": [{"uri": str(folder / "summary.md")}]},
                },
            },
        }
    )


def test_what_is_pinned_is_taken_and_what_came_since_is_not(model: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    release = resolve_release(str(model)).address
    assert fetch(store, release) == fetch(store, str(model))
    (model / "tokenizer.json").write_text('{"version": "2"}')
    with pytest.raises(StepError, match="has changed since it was looked at"):
        fetch(store, release)
    assert fetch(store, resolve_release(release).address) == fetch(store, str(model))


def test_equal_models_give_equal_receipts_wherever_they_lie(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "a copy"
    shutil.copytree(model, other)
    os.utime(other / "config.json", (0, 0))
    (other / "README.md").write_text("not part of the model")
    first = fetch(LocalStore(tmp_path / "first"), str(model))
    second = fetch(LocalStore(tmp_path / "second"), str(other))
    assert first.to_json() == second.to_json()
    assert str(tmp_path).encode() not in first.to_json()


def test_the_receipt_describes_the_model(model: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    receipt = fetch(store, str(model))
    assert receipt.facts == {
        "source": {"kind": "folder"},
        "model_type": "llama",
        "digest": receipt.parameters["content"],
        "bytes": (model / "model.safetensors").stat().st_size,
        "tensors": 2,
    }
    checkpoint = Checkpoint.open(ReceiptSource(store, receipt))
    assert tuple(checkpoint.tensors) == TENSORS
    assert checkpoint.read(TENSORS[0]) == b"\x80\x3f" * 32


def test_what_makes_images_of_a_model_comes_along(model: Path, tmp_path: Path) -> None:
    brought = {
        "preprocessor_config.json",
        "processor_config.json",
        "video_preprocessor_config.json",
    }
    for name in (*brought, "processing.py"):
        (model / name).write_text("{}")
    receipt = fetch(LocalStore(tmp_path / "store"), str(model))
    assert {name for name in receipt.files if "process" in name} == brought


def test_other_content_is_other_work(model: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    receipt = fetch(store, str(model))
    other = fetch(store, str(write_model(tmp_path / "other", value=0x4000)))
    assert other.key != receipt.key
    assert other.facts["digest"] != receipt.facts["digest"]
    (model / "config.json").write_text('{"model_type": "qwen2"}')
    assert fetch(store, str(model)).key not in (receipt.key, other.key)


def test_done_work_is_not_done_again(model: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    receipt = fetch(store, str(model))
    run = store.local_path(f"{receipt.aside}/run.json")
    before = run.stat().st_mtime_ns
    assert fetch(store, str(model)) == receipt
    assert run.stat().st_mtime_ns == before


def test_a_refused_model_leaves_nothing_in_the_store(model: Path, tmp_path: Path) -> None:
    bad = write_model(tmp_path / "bad", value=0x7F80)
    for source in (bad, tmp_path / "none", tmp_path / "none.gguf"):
        with pytest.raises(InvalidInputError):
            fetch(LocalStore(tmp_path / "store"), str(source))
    assert not (tmp_path / "store").exists()


def test_the_step_prefers_its_source_to_the_recipes_model(
    tiny_llama: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = json.dumps({"model": str(tiny_llama)})
    store = str(tmp_path / "store")
    for source in ("", str(make_model(tmp_path / "other", "qwen2"))):
        call = StepCall.parse(executor_input(tmp_path, recipe=recipe, source=source, store=store))
        main(call)
        call.finish()
        receipt = Receipt.from_json((tmp_path / "model.json").read_bytes())
        assert receipt == fetch(LocalStore(store), source or str(tiny_llama))
        written = json.loads((tmp_path / "executor.json").read_text())
        metadata = written["artifacts"]["model"]["artifacts"][0]["metadata"]
        assert metadata["digest"] == receipt.digest()
        # What all later steps take: with every default, whatever was chosen.
        checked = AskedRecipe(model=str(tiny_llama)).canonical_json()
        assert written["parameterValues"] == {"checked_recipe": checked}


def test_a_recipe_without_a_model_needs_a_source(tmp_path: Path) -> None:
    text = executor_input(tmp_path, recipe="{}", source="", store=str(tmp_path / "store"))
    with pytest.raises(InvalidInputError, match="model: none was given; give a folder"):
        main(StepCall.parse(text))


def test_bad_input_exits_with_2_and_without_torch(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    text = executor_input(tmp_path, recipe="{}", source=str(model), store=str(tmp_path / "store"))
    command = [sys.executable, "-X", "importtime", "-m", "quantlib.steps", "fetch"]
    done = subprocess.run(
        [*command, "--executor-input", text], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "pickled weights only (pytorch_model.bin)" in done.stderr.splitlines()[-1]
    assert "| torch\n" not in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_text_that_is_not_there_is_refused_before_the_model_is_fetched(
    model: Path, tmp_path: Path
) -> None:
    recipe = json.dumps({"validation": {"dataset": "./none.jsonl"}})
    text = executor_input(tmp_path, recipe=recipe, source=str(model), store=str(tmp_path / "store"))
    with pytest.raises(InvalidInputError, match=r"\./none\.jsonl: there is no such file"):
        main(StepCall.parse(text))
    assert not (tmp_path / "store").exists()
