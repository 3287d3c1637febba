"""Public models of 2025 and 2026, by the facts of tests/data/models, up to the plan.

What they are found to be made of is recorded in tests/data/layouts.json and was reviewed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import public_models
import pytest
import transformers
from click.testing import CliRunner
from public_models import PublicModel

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.cli import cli
from quantlib.errors import InvalidInputError
from quantlib.models import open_model
from quantlib.models.adapter import BaseModelAdapter
from quantlib.models.registry import model_registry
from quantlib.models.skeleton import Skeleton
from quantlib.planning.estimate import estimate_run
from quantlib.planning.hardware import find_hardware
from quantlib.steps.plan import plan_ranges

ROOT = Path(__file__).parents[2]
LAYOUTS: dict[str, Any] = json.loads(public_models.LAYOUTS.read_text(encoding="utf-8"))
QUICK = (
    "HuggingFaceTB--SmolLM3-3B",
    "LGAI-EXAONE--EXAONE-4.0-1.2B",
    "Qwen--Qwen3-0.6B",
    "Qwen--Qwen3-30B-A3B",
    "Qwen--Qwen3-VL-30B-A3B-Instruct",
    "google--gemma-4-26B-A4B",
    "google--medgemma-27b-it",
    "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "openai--gpt-oss-20b",
)
"""One core opens them in a few seconds each."""

REFUSED = ("MiniMaxAI--MiniMax-M3", "XiaomiMiMo--MiMo-7B-Base", "moonshotai--Kimi-K3")
"""Models that transformers does not know."""

PUBLISHED_BYTES = {
    "HuggingFaceTB--SmolLM3-3B": 6_150_197_248,
    "google--medgemma-27b-it": 54_864_813_280,
    "openai--gpt-oss-120b": 65_248_815_744,
    "openai--gpt-oss-20b": 13_761_264_768,
}
"""``metadata.total_size`` of their published indices."""


@dataclass(frozen=True)
class Opened:
    """A public model, and what it is found to be."""

    model: PublicModel
    checkpoint: Checkpoint
    adapter: BaseModelAdapter


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in LAYOUTS
    ],
)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    model = public_models.read(request.param)
    folder = model.write(tmp_path_factory.mktemp("public") / "model")
    return Opened(model, *open_model(FolderSource(folder)))


def test_there_are_enough_of_them() -> None:
    assert len(LAYOUTS) >= 30
    assert set(LAYOUTS) <= set(public_models.names())
    for name in public_models.names():
        assert name == public_models.read(name).name.replace("/", "--")


@pytest.mark.parametrize("name", sorted(set(public_models.names()) - set(REFUSED)))
def test_every_field_of_a_config_is_known(name: str) -> None:
    config = public_models.read(name).config
    adapter = model_registry.adapter_of(config)
    skeleton = Skeleton(adapter.transformers_config(config))
    assert [str(problem) for problem in skeleton.field_problems] == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_does_not_know_is_refused_in_one_line(name: str) -> None:
    config = public_models.read(name).config
    with pytest.raises(InvalidInputError) as refused:
        Skeleton(config)
    line = str(refused.value)
    known = f"transformers {transformers.__version__} does not know {config['model_type']!r}"
    assert line.startswith(f"config.json: model_type: {known}")
    assert "\n" not in line


@pytest.mark.parametrize("name", PUBLISHED_BYTES)
def test_the_tensors_have_the_bytes_of_the_published_index(name: str) -> None:
    assert public_models.read(name).bytes == PUBLISHED_BYTES[name]


def test_a_model_is_made_of_what_was_reviewed(opened: Opened) -> None:
    name = opened.model.name.replace("/", "--")
    assert public_models.facts(opened.checkpoint, opened.adapter) == LAYOUTS[name]


def test_a_model_can_be_planned(opened: Opened) -> None:
    blocks = opened.adapter.blocks
    for name in public_models.RECIPES:
        recipe = public_models.recipe(name, opened.adapter)
        ranges = plan_ranges(recipe, opened.adapter, 4)
        assert ranges[0][0] == 0
        assert ranges[-1][1] <= blocks
        assert [stop for _, stop in ranges[:-1]] == [start for start, _ in ranges[1:]]
        hardware = find_hardware("h100-80g")
        estimate = estimate_run(recipe, opened.checkpoint, opened.adapter, hardware, 4)
        assert 0 < estimate.chosen.makespan < float("inf")


@pytest.mark.parametrize(
    "name",
    [
        "google--gemma-4-26B-A4B",
        "openai--gpt-oss-20b",
        pytest.param("deepseek-ai--DeepSeek-R1", marks=pytest.mark.slow),
    ],
)
def test_inspect_tells_the_same(name: str, tmp_path: Path) -> None:
    folder = public_models.read(name).write(tmp_path / "model")
    run = CliRunner().invoke(cli, ["inspect", str(folder), "--json"])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert found["walked"]
    assert found["architecture"] == LAYOUTS[name]["architecture"]
    assert found["parameters"] == LAYOUTS[name]["parameters"]
    assert found["quantized_parameters"] == LAYOUTS[name]["quantized"]
    assert len(found["kinds"]) == len(LAYOUTS[name]["kinds"])


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    for file in ("scripts/models.py", "tests/data/layouts.json"):
        (tmp_path / file).parent.mkdir(parents=True)
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "docs").mkdir()
    subprocess.run([sys.executable, tmp_path / "scripts" / "models.py"], check=True)
    assert (tmp_path / "docs" / "models.md").read_text() == (ROOT / "docs/models.md").read_text()


def test_a_router_that_is_a_linear_but_gives_two_tensors_is_left_alone(tmp_path: Path) -> None:
    """Llama 4's is, and that of Scout is large enough to be replaced where folds are looked for."""
    adapter = first_blocks("meta-llama--Llama-4-Scout-17B-16E-Instruct", 1, tmp_path)
    assert list(adapter.kept_exact(0)) == ["feed_forward.router"]
    down = adapter.inputs(0)[-2]
    assert (down.name, down.experts) == ("feed_forward.experts.15.down_proj", 16)


def test_a_tower_whose_tensors_are_split_lacks_nothing(tmp_path: Path) -> None:
    """Kimi K2.5 stores queries, keys and values of its tower in one tensor."""
    adapter = first_blocks("moonshotai--Kimi-K2.5", 2, tmp_path)
    assert list(adapter.kept_exact(0)) == ["self_attn.kv_b_proj"]
    assert "quantization_config" not in adapter.text_config


def first_blocks(name: str, count: int, folder: Path) -> BaseModelAdapter:
    """A public model of its first blocks."""
    model = public_models.read(name)
    config = {**model.config, "text_config": {**model.config["text_config"]}}
    config["text_config"]["num_hidden_layers"] = count
    tensors = {
        tensor: value
        for tensor, value in model.tensors.items()
        if not (found := re.search(r"language_model\..*layers\.(\d+)\.", tensor))
        or int(found[1]) < count
    }
    shortened = replace(model, config=config, tensors=tensors)
    _, adapter = open_model(FolderSource(shortened.write(folder / "model")))
    return adapter
