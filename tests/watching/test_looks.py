"""A look at a watched recipe: what is started, once, and what a folder of recipes stands for."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from published_runs import publish_as
from recipes import QUICK

from quantlib.checks.recipe import parse_recipe
from quantlib.errors import InvalidInputError
from quantlib.publishing.jobs import published_of
from quantlib.watching.jobs import find_job
from quantlib.watching.looks import Starter, look, recipe_names


def test_a_second_watcher_waits_for_the_first_and_does_nothing_twice(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, published = (
        parse_recipe(QUICK | {"model": str(tiny_llama)}),
        str(tmp_path / "published"),
    )
    digest = find_job(recipe, published, ()).digest
    started: list[int] = []

    def run(*_: object) -> int:
        started.append(1)
        time.sleep(1)
        publish_as(published, digest)
        return 0

    monkeypatch.setattr("quantlib.watching.looks._run", run)
    path = tmp_path / "recipe.json"
    path.write_text(recipe.canonical_json())
    starter = Starter(str(tmp_path / "store"), published, "process", (), (), 60)
    with ThreadPoolExecutor() as pool:
        looks = list(pool.map(lambda _: look(str(path), starter), range(2)))
    assert len(started) == 1
    assert sorted(each.outcome for each in looks) == ["quantized", "up to date"]
    assert {each.detail for each in looks} == {published_of(published, digest)}


def test_a_folder_stands_for_the_recipes_in_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="holds no recipe"):
        recipe_names([str(tmp_path)])
    for name in ("b.yaml", "a.json", "README.md"):
        (tmp_path / name).touch()
    recipes = [str(tmp_path / "a.json"), str(tmp_path / "b.yaml")]
    assert recipe_names(["gptq", str(tmp_path)]) == ["gptq", *recipes]
