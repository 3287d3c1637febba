"""The workflow with its real steps, on a tiny model.

Steps are processes where one is killed, and calls in the others.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli.conftest import quantlib as quantlib  # a fixture
from command import Command, Done
from in_process import InProcess
from recipes import QUICK

import images
from quantlib.checks.recipe import recipe_path
from quantlib.report.manifest import verify_published
from quantlib.store import LocalStore

pytestmark = pytest.mark.usefixtures("shared_engines")

RECIPE = QUICK | {
    "calibration": {"num_samples": 256, "sequence_length": 64},
    "num_ranges": 3,
}


class Pipeline:
    """Runs of one recipe and model, with a store of their own."""

    def __init__(self, folder: Path, model: Path, recipe: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "recipe.json").write_text(json.dumps(recipe))
        self.arguments = ["run", "--recipe", str(folder / "recipe.json")]
        self.arguments += ["--model", str(model), "--store", str(folder / "store")]
        self.arguments += ["--publish-to", str(folder / "published")]
        self.arguments += ["--run-dir", str(folder / "run"), "--parallel", "2", "--device", "cpu"]

    def start(self) -> subprocess.Popen[str]:
        """Starts a run as a person does, each step a process."""
        return subprocess.Popen(
            [sys.executable, "-m", "quantlib", *self.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def receipts(self, step: str) -> dict[str, int]:
        """When each receipt of a step was written, by the range or key of the step."""
        found = {}
        for path in (self.folder / "store" / "steps" / step).glob("*.json"):
            receipt = json.loads(path.read_bytes())
            found[receipt["parameters"].get("range", receipt["key"])] = path.stat().st_mtime_ns
        return found

    def published(self) -> Path:
        """The published folder."""
        (manifest,) = (self.folder / "published").glob("*/*/manifest.json")
        return manifest.parent


Run = Callable[[Pipeline], Done]


@pytest.fixture
def run(quantlib: Command, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a pipeline to its end, in this process."""
    monkeypatch.setattr("pipelines.commands.run.ProcessRunner", InProcess)
    return lambda pipeline: quantlib(*pipeline.arguments)


def process_of(block_range: str, deadline: float) -> int:
    """The process that quantizes a range, once there is one."""
    while time.monotonic() < deadline:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if b"quantlib.steps\0quantize" in command and block_range.encode() in command:
                    return int(entry.name)
        time.sleep(0.02)
    raise AssertionError(f"nothing quantizes {block_range}")


@pytest.mark.slow
def test_a_killed_range_is_all_that_is_done_again(
    make_model: Any, tmp_path: Path, run: Run
) -> None:
    model = make_model(tmp_path / "model", num_hidden_layers=6)
    broken = Pipeline(tmp_path / "broken", model, RECIPE)
    process = broken.start()
    os.kill(process_of("4:6", time.monotonic() + 120), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGKILL, output
    before = broken.receipts("quantize")
    assert set(before) == {"0:2", "2:4"}
    assert not (tmp_path / "broken" / "published").exists()

    process = broken.start()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    verify_published(LocalStore(broken.published()))
    after = broken.receipts("quantize")
    assert set(after) == {"0:2", "2:4", "4:6"}
    assert all(after[block_range] == when for block_range, when in before.items())

    whole = Pipeline(tmp_path / "whole", model, RECIPE)
    assert run(whole).returncode == 0
    # The published folder is named by the digest of the checkpoint's bytes.
    assert whole.published().name == broken.published().name


@pytest.mark.slow
def test_a_failed_gate_stops_before_publish(make_model: Any, tmp_path: Path, run: Run) -> None:
    model = make_model(tmp_path / "model", num_hidden_layers=2)
    strict = {"max_kl_mean": 1e-9}
    recipe = RECIPE | {"num_ranges": 1, "validation": RECIPE["validation"] | {"thresholds": strict}}
    pipeline = Pipeline(tmp_path / "run", model, recipe)
    done = run(pipeline)
    assert done.returncode == 3
    assert "mean KL divergence is" in done.stderr
    assert not (tmp_path / "run" / "published").exists()
    written = json.loads((tmp_path / "run" / "run" / "run.json").read_text())
    validated = written["tasks"]["validate"]["outputs"]
    assert validated["parameters"]["verdict"] == "regression"
    (report,) = validated["artifacts"]["report"]
    assert "Regression" in Path(report["path"]).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["awq", "fp8", "hqq", "smooth_quant"])
def test_a_recipe_that_ships_goes_through(
    make_model: Any, tmp_path: Path, run: Run, name: str
) -> None:
    model = make_model(tmp_path / "model", num_hidden_layers=2)
    ships = yaml.safe_load(recipe_path(name).read_text(encoding="utf-8"))
    if ships["quantization"]["weights"]["group_size"] != -1:
        ships["quantization"]["weights"]["group_size"] = 32  # as narrow as the tiny model
    pipeline = Pipeline(
        tmp_path / "run",
        model,
        RECIPE | ships | {"num_ranges": 2, "validation": RECIPE["validation"]},
    )
    done = run(pipeline)
    assert done.returncode == 0, done.stderr
    verify_published(LocalStore(pipeline.published()))
    report = json.loads((pipeline.published() / "quantization_report.json").read_text())
    assert report["method"]["quantizer"] == ships["quantization"]["method"]


def test_bad_input_is_refused_before_anything_is_written(
    tiny_llama: Path, tmp_path: Path, run: Run
) -> None:
    recipe = RECIPE | {"quantization": {"weights": {"group_size": 128}, "layers": [9]}}
    pipeline = Pipeline(tmp_path / "run", tiny_llama, recipe)
    done = run(pipeline)
    assert done.returncode == 2
    assert "group_size: 128 does not divide" in done.stderr
    assert "quantization.layers: 9 out of range" in done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.json"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3_images", "qwen3_vl"])
def test_the_pipeline_calibrates_with_images_as_one_command_does(
    family: str, tmp_path: Path, run: Run, quantlib: Command
) -> None:
    pytest.importorskip("torchvision")
    model = images.make(family, tmp_path / "model", chat_template=True)
    text = images.write_text(tmp_path / "text")
    with text.open("a") as file:  # and a row that steps cannot reach
        url = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
        file.write(json.dumps({"messages": [{"role": "user", "content": [url]}]}) + "\n")
    calibration = {"dataset": str(text), "num_samples": 18, "sequence_length": 64}
    pipeline = Pipeline(tmp_path / "run", model, RECIPE | {"calibration": calibration})
    done = run(pipeline)
    assert done.returncode == 0, done.stderr
    reason = "an image is on the web, which is not read"
    planned = (tmp_path / "run" / "run" / "plan" / "log.txt").read_text()
    assert f"1 left out: 1 {reason} (text.jsonl row 12: {reason} (https:" in planned

    command = ["quantize", "--model-path", model, "--output-path", tmp_path / "out"]
    done = quantlib(*command, "--config", tmp_path / "run" / "recipe.json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert report["calibration"]["with_images"] == 10
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) == (4 if family == "gemma3_images" else 3)  # of ranges, and all else
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (pipeline.published() / name).read_bytes()
