"""What commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.commands.options import Job, cluster_settings, own_recipes
from pipelines.compiling import CompileOptions, prepare
from pipelines.graph import QUANTIZE
from quantlib.checks.recipe import load_recipe
from quantlib.errors import InvalidInputError


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
