"""The commands of docs/getting-started.md, run as written on a tiny model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from documents import ROOT, Block, blocks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform"),
]
START_SECONDS = 180


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Path:
    """A folder with what the page takes for granted, and the recipes that it shows."""
    root = tmp_path_factory.mktemp("getting-started")
    sizes = {"max_position_embeddings": 1024, "initializer_range": 0.05}
    make_model(root / "my-model", "llama", **sizes)
    text = (ROOT / "quantlib/text/data/python-topics.jsonl").read_text(encoding="utf-8")
    (root / "prompts.jsonl").write_text(text, encoding="utf-8")
    page = ROOT / "docs" / "getting-started.md"
    yamls = [block.text for block in blocks(page) if block.language == "yaml"]
    for name, recipe in zip(("smooth-off.yaml", "my-recipe.yaml"), yamls, strict=True):
        assert f"`{name}`" in page.read_text(encoding="utf-8")
        (root / name).write_text(recipe, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """One in which `quantlib` and `python` are the tested ones."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def outputs(folder: Path, environment: dict[str, str]) -> Iterator[list[tuple[Block, str]]]:
    """Every command of the page with what it printed; the server runs until the end."""
    done: list[tuple[Block, str]] = []
    server: subprocess.Popen[str] | None = None
    try:
        for block in blocks(ROOT / "docs" / "getting-started.md"):
            if block.language != "sh":
                continue
            if block.text.startswith("quantlib deploy") and "--print" not in block.text:
                server = subprocess.Popen(
                    block.text, shell=True, cwd=folder, env=environment, start_new_session=True
                )
                wait_for_health(block.text, server)
                continue
            result = subprocess.run(
                ["bash", "-euc", block.text],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert result.returncode == 0, f"{block.text}\n{result.stdout}\n{result.stderr}"
            done.append((block, result.stdout))
        yield done
    finally:
        if server is not None:
            os.killpg(server.pid, signal.SIGINT)
            server.wait(60)


def wait_for_health(command: str, server: subprocess.Popen[str]) -> None:
    port = re.search(r"--port (\d+)", command)
    assert port is not None
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/health", timeout=5)
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"{command}: no health after {START_SECONDS} s")


def output_of(outputs: list[tuple[Block, str]], start: str) -> str:
    return next(text for block, text in outputs if block.text.startswith(start))


def test_a_completion_is_served(outputs: list[tuple[Block, str]]) -> None:
    completion = json.loads(output_of(outputs, "curl"))
    assert completion["choices"][0]["text"]
    assert completion["model"] == "my-model-w4"


def test_print_shows_the_command(outputs: list[tuple[Block, str]]) -> None:
    command = output_of(outputs, "quantlib deploy")
    assert "--dtype bfloat16" in command
    assert "--quantization" not in command  # vLLM reads it from config.json


def test_layers_leave_the_others_exact(folder: Path, outputs: list[tuple[Block, str]]) -> None:
    from quantlib.checkpoint.checkpoint import Checkpoint
    from quantlib.checkpoint.source import FolderSource

    assert outputs
    original = Checkpoint.open(FolderSource(folder / "my-model"))
    partly = Checkpoint.open(FolderSource(folder / "my-model-012"))
    name = "model.layers.{}.mlp.up_proj.weight"
    assert partly.read(name.format(3)) == original.read(name.format(3))
    assert name.format(2) not in partly.tensors


def test_runs_are_compared(folder: Path, outputs: list[tuple[Block, str]]) -> None:
    page = (folder / "comparison.html").read_text(encoding="utf-8")
    assert "plain" in page
    assert "smoothed" in page
    assert output_of(outputs, "quantlib quantize --model ./my-model --output ./plain")


def test_the_recipe_decides(folder: Path, outputs: list[tuple[Block, str]]) -> None:
    assert "valid" in output_of(outputs, "quantlib validate-recipe")
    config = json.loads((folder / "my-model-own" / "config.json").read_text())
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    assert weights["group_size"] == 32
    assert not weights["symmetric"]


def test_the_pipeline_publishes(folder: Path, outputs: list[tuple[Block, str]]) -> None:
    assert outputs
    assert list((folder / "published").glob("*/*/manifest.json"))
