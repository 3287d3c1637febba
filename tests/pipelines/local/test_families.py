"""The workflow in three ranges on a model of each family that publishers released of late.

The models are tiny and as the hub has them, quantized where their publishers quantize them. That
vLLM serves such checkpoints is tested by tests/test_families_served.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zoo
from cli.conftest import quantlib as quantlib  # a fixture
from command import Command
from in_process import InProcess
from quantized_models import quantized_experts, quantized_model
from recipes import QUICK

from quantlib.report.manifest import verify_published
from quantlib.store import LocalStore

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_engines")]

FAMILIES = [
    "gemma3_images",
    "qwen3_5_images",
    "qwen3_5_moe_images",
    "gpt_oss",
    "deepseek_v3",
    "glm4_moe",
    "nemotron_h",
    "granitemoehybrid",
    "llama4_text",
    "mistral3_images",
]
VALIDATION = QUICK["validation"]
RECIPE = QUICK | {
    "quantization": QUICK["quantization"] | {"format": "compressed-tensors"},
    "num_ranges": 3,
    # What a tiny random model loses says nothing, nor which of its experts get tokens.
    "validation": VALIDATION
    | {"thresholds": VALIDATION["thresholds"] | {"max_undercalibrated_experts": 1}},
}


def released(family: str, folder: Path) -> Path:
    """A model of a family, stored as its publishers do."""
    source = zoo.make(family, folder / "source")
    if family == "gpt_oss":
        return quantized_experts(source, folder)[0]
    if family == "deepseek_v3":
        return quantized_model(source, folder, "fp8")[0]
    return source


@pytest.mark.parametrize("family", FAMILIES)
def test_three_workers_write_what_one_command_does(
    family: str, tmp_path: Path, quantlib: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.commands.run.ProcessRunner", InProcess)
    model, recipe = released(family, tmp_path), tmp_path / "recipe.json"
    recipe.write_text(json.dumps(RECIPE))
    arguments = ["--recipe", recipe, "--model", model, "--device", "cpu"]
    folders = ["--store", tmp_path / "store", "--publish-to", tmp_path / "published"]
    done = quantlib("run", *arguments, *folders, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    (manifest,) = tmp_path.glob("published/*/*/manifest.json")
    verify_published(LocalStore(manifest.parent))

    # Any number of workers: a range starts from the original's states, one command's too.
    done = quantlib("quantize", *arguments, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == sorted(path.name for path in manifest.parent.glob("*.safetensors"))
    assert len(files) > 3  # of ranges, and all else
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (manifest.parent / name).read_bytes()
