"""The workflow with its real steps, on a tiny model, by the process runner."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipes import QUICK

import images
from quantlib.checks.recipe import recipe_path
from quantlib.report.manifest import verify_published
from quantlib.store import LocalStore

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
        self.command = [sys.executable, "-m", "quantlib", "run"]
        self.command += ["--recipe", str(folder / "recipe.json")]
        self.command += ["--model", str(model), "--store", str(folder / "store")]
        self.command += ["--publish-to", str(folder / "published")]
        self.command += ["--run-dir", str(folder / "run"), "--parallel", "2", "--device", "cpu"]

    def start(self) -> subprocess.Popen[str]:
        """Starts a run."""
        return subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self) -> tuple[int, str]:
        """Runs to the end; exit code and output."""
        process = self.start()
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

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
def test_a_killed_range_is_all_that_is_done_again(make_model: Any, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", num_hidden_layers=6)
    broken = Pipeline(tmp_path / "broken", model, RECIPE)
    process = broken.start()
    os.kill(process_of("4:6", time.monotonic() + 120), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGKILL, output
    before = broken.receipts("quantize")
    assert set(before) == {"0:2", "2:4"}
    assert not (tmp_path / "broken" / "published").exists()

    code, output = broken.run()
    assert code == 0, output
    after = broken.receipts("quantize")
    assert set(after) == {"0:2", "2:4", "4:6"}
    assert all(after[block_range] == when for block_range, when in before.items())

    whole = Pipeline(tmp_path / "whole", model, RECIPE)
    assert whole.run()[0] == 0
    verify_published(LocalStore(whole.published()))
    # The published folder is named by the digest of the checkpoint's bytes.
    assert whole.published().name == broken.published().name


@pytest.mark.slow
def test_a_failed_gate_stops_before_publish(make_model: Any, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", num_hidden_layers=2)
    strict = {"max_kl_mean": 1e-9}
    recipe = RECIPE | {"num_ranges": 1, "validation": RECIPE["validation"] | {"thresholds": strict}}
    pipeline = Pipeline(tmp_path / "run", model, recipe)
    code, output = pipeline.run()
    assert code == 3
    assert "mean KL divergence is" in output
    assert not (tmp_path / "run" / "published").exists()
    run = json.loads((tmp_path / "run" / "run" / "run.json").read_text())
    assert run["tasks"]["validate"]["outputs"]["parameters"]["verdict"] == "failed"
    (report,) = run["tasks"]["validate"]["outputs"]["artifacts"]["report"]
    assert "Failed" in Path(report["path"]).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["awq", "fp8", "hqq", "smooth_quant"])
def test_a_recipe_that_ships_goes_through(make_model: Any, tmp_path: Path, name: str) -> None:
    model = make_model(tmp_path / "model", num_hidden_layers=2)
    ships = yaml.safe_load(recipe_path(name).read_text(encoding="utf-8"))
    if ships["quantization"]["weights"]["group_size"] != -1:
        ships["quantization"]["weights"]["group_size"] = 32  # as narrow as the tiny model
    pipeline = Pipeline(
        tmp_path / "run",
        model,
        RECIPE | ships | {"num_ranges": 2, "validation": RECIPE["validation"]},
    )
    code, output = pipeline.run()
    assert code == 0, output
    verify_published(LocalStore(pipeline.published()))
    report = json.loads((pipeline.published() / "quantization_report.json").read_text())
    assert report["method"]["quantizer"] == ships["quantization"]["method"]


def test_bad_input_is_refused_before_anything_is_written(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = RECIPE | {"quantization": {"weights": {"group_size": 128}, "layers": [9]}}
    pipeline = Pipeline(tmp_path / "run", tiny_llama, recipe)
    code, output = pipeline.run()
    assert code == 2
    assert "group_size: 128 does not divide" in output
    assert "quantization.layers: 9 out of range" in output
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.json"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3_images", "qwen3_vl"])
def test_the_pipeline_calibrates_with_images_as_one_command_does(
    family: str, tmp_path: Path
) -> None:
    pytest.importorskip("torchvision")
    model = images.make(family, tmp_path / "model", chat_template=True)
    text = images.write_text(tmp_path / "text")
    with text.open("a") as file:  # and a row that steps cannot reach
        url = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
        file.write(json.dumps({"messages": [{"role": "user", "content": [url]}]}) + "\n")
    calibration = {"dataset": str(text), "num_samples": 18, "sequence_length": 64}
    pipeline = Pipeline(tmp_path / "run", model, RECIPE | {"calibration": calibration})
    code, said = pipeline.run()
    assert code == 0, said
    reason = "an image is on the web, which is not read"
    planned = (tmp_path / "run" / "run" / "plan" / "log.txt").read_text()
    assert f"1 left out: 1 {reason} (text.jsonl row 12: {reason} (https:" in planned

    command = [sys.executable, "-m", "quantlib", "quantize", "--model-path", str(model)]
    command += ["--config", str(tmp_path / "run" / "recipe.json"), "--device", "cpu"]
    command += ["--output-path", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert report["calibration"]["with_images"] == 10
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) == (4 if family == "gemma3_images" else 3)  # of ranges, and all else
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (pipeline.published() / name).read_bytes()
