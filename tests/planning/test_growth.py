"""That a checkpoint will be larger than the quantized one that it is made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zoo
from click.testing import CliRunner
from quantized_models import quantized_experts, quantized_model

from quantlib.checkpoint.source import FolderSource
from quantlib.cli import cli
from quantlib.models import open_model
from quantlib.planning.model import growth_line
from quantlib.recipe import Recipe
from quantlib.store import LocalStore

LARGER = "The checkpoint will be larger than its source, which is quantized already: about "


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model as it is released, with its experts in MXFP4, and the plain one that it is."""
    folder = tmp_path_factory.mktemp("gpt_oss")
    return quantized_experts(zoo.make("gpt_oss", folder / "source"), folder)


def line_of(model: Path, recipe: Recipe) -> str | None:
    return growth_line(recipe, *open_model(FolderSource(model), folds=False))


def test_experts_that_stay_exact_are_written_whole(
    gpt_oss: tuple[Path, Path],
    tmp_path: Path,
    small_recipe: Callable[..., Recipe],
    run_steps: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored, plain = gpt_oss
    recipe = small_recipe(quantization={"method": "minmax", "format": "compressed-tensors"})
    made = run_steps(LocalStore(tmp_path / "store"), recipe, stored)
    said = line_of(stored, recipe)
    assert said is not None and said.startswith(LARGER)
    assert f"{said}.\n" in capsys.readouterr().err
    before, after = (
        sum(record.bytes for name, record in receipt.files.items() if "safetensors" in name) / 2**20
        for receipt in (made.model, made.checkpoint)
    )
    told = said.removeprefix(LARGER).partition(" MiB; ")[0].split(" MiB in the place of ")
    assert [float(each) for each in told] == pytest.approx([after, before], rel=0.05)
    assert line_of(plain, recipe) is None


def test_the_command_says_it_in_a_line_and_as_json(
    gpt_oss: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("validation: {sequence_length: 64}\n")
    arguments = ["plan", str(gpt_oss[0]), "--recipe", str(recipe), "--group-size", "32"]
    runner = CliRunner(env={"COLUMNS": "300"})
    (line,) = (line for line in runner.invoke(cli, arguments).output.splitlines() if LARGER in line)
    assert json.loads(runner.invoke(cli, [*arguments, "--json"]).output)["growth"] == line


def test_a_source_that_is_made_smaller_is_passed_over(
    tiny_llama: Path, tmp_path: Path, small_recipe: Callable[..., Recipe]
) -> None:
    stored, _ = quantized_model(tiny_llama, tmp_path, "fp8")
    assert line_of(stored, small_recipe()) is None
