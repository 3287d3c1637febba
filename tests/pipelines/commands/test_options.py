"""What commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.commands.options import Job, cluster_settings, own_recipes, require_reachable
from pipelines.compiling import CompileOptions, prepare
from pipelines.graph import QUANTIZE
from quantlib.checks.recipe import load_recipe, parse_recipe
from quantlib.errors import InvalidInputError
from quantlib.recipe import Recipe


def recipe_on(calibration: str | None, evaluation: str | None, method: str = "gptq") -> Recipe:
    return parse_recipe(
        {
            "quantization": {"method": method},
            "calibration": {"dataset": calibration},
            "validation": {"dataset": evaluation},
        }
    )


def require(recipe: Recipe) -> None:
    require_reachable(recipe, "hf://org/name", "s3://bucket/store", "s3://bucket/published")


def test_texts_of_this_machine_cannot_be_reached_from_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "held-out").mkdir()
    with pytest.raises(InvalidInputError) as refused:
        require(recipe_on("./prompts.jsonl", str(tmp_path / "held-out")))
    first, second = map(str, refused.value.problems)
    assert first.startswith("calibration.dataset ./prompts.jsonl: is on this machine; put it in ")
    assert second.startswith(f"validation.dataset {tmp_path}/held-out: is on this machine; put it")
    assert "s3://bucket/prefix" in first


def test_texts_elsewhere_can() -> None:
    require(recipe_on(None, "s3://bucket/text.jsonl"))
    require(recipe_on("org/texts:small", "hf://datasets/org/texts@main/a.parquet"))
    # A text that the method does not read need not be there.
    require(recipe_on("./prompts.jsonl", None, "minmax"))


def test_a_run_in_a_cluster_takes_its_places_from_the_profile(tmp_path: Path) -> None:
    profile = tmp_path / "team.yaml"
    profile.write_text("store: s3://team/store\ngpu: l4-24g\n")
    job = Job("hf://org/name", "awq", None, None, 3, "", "auto", None)
    options = CompileOptions(str(profile), recipes={"awq": load_recipe("awq")})
    settings = cluster_settings(job, load_recipe("awq"), prepare(QUANTIZE, options))
    assert settings == {
        "model": "hf://org/name",
        "recipe": "awq",
        "scheme": "as in the recipe",
        "recipe_changes": {},
        "store": "s3://team/store",
        "publish_to": "",
        "num_ranges": 3,
        "device": "auto",
        "gpu": "l4-24g",
    }
    with pytest.raises(InvalidInputError, match="--store: is missing"):
        cluster_settings(job, load_recipe("awq"), prepare(QUANTIZE, CompileOptions()))


def test_recipes_of_ones_own_have_names_of_their_own(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "team.yaml").write_text("quantization: {method: minmax}")
    (tmp_path / "broken.yaml").write_text("quantisation: {}")
    assert list(own_recipes([str(tmp_path / "a" / "team.yaml"), "awq"])) == ["team", "awq"]
    names = [str(tmp_path / name) for name in ("a/team.yaml", "b/team.yaml", "broken.yaml")]
    with pytest.raises(InvalidInputError) as refused:
        own_recipes(names)
    twice, broken = map(str, refused.value.problems)
    assert twice.endswith("b/team.yaml: is called as another one is; rename it")
    assert "broken.yaml: quantisation" in broken
