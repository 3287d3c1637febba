"""What a run elsewhere cannot reach."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantlib.checks.recipe import parse_recipe
from quantlib.checks.remote import require_reachable
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


@pytest.mark.parametrize(
    ("publish_to", "problem"),
    [
        ("ftp://host/folder", "unsupported kind of destination"),
        ("oci://model", "names no registry"),
        ("./published", "is a folder of this machine"),
    ],
)
def test_a_destination_that_is_none_is_refused_with_the_rest(publish_to: str, problem: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        require_reachable(recipe_on(None, None), "./model", "s3://bucket/store", publish_to)
    model, destination = map(str, raised.value.problems)
    assert "--model ./model: is a folder of this machine" in model
    assert problem in destination
