from pathlib import Path

import pytest

from pipelines._options import require_reachable
from quantlib.checks.recipe import parse_recipe
from quantlib.errors import InvalidInputError


def parameters(calibration: str | None, evaluation: str | None, method: str = "gptq") -> dict:
    recipe = parse_recipe(
        {
            "quantization": {"method": method},
            "calibration": {"dataset": calibration},
            "validation": {"dataset": evaluation},
        }
    )
    return {
        "recipe": recipe.canonical_json(),
        "source": "hf://org/name",
        "store": "s3://bucket/store",
        "destination": "s3://bucket/published",
    }


def test_texts_of_this_machine_cannot_be_reached_from_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "held-out").mkdir()
    given = parameters("./prompts.jsonl", str(tmp_path / "held-out"))
    with pytest.raises(InvalidInputError) as refused:
        require_reachable(given)
    first, second = map(str, refused.value.problems)
    assert first.startswith("calibration.dataset ./prompts.jsonl: is on this machine; put it in ")
    assert second.startswith(f"validation.dataset {tmp_path}/held-out: is on this machine; put it")
    assert "s3://bucket/prefix" in first


def test_texts_elsewhere_can(tmp_path: Path) -> None:
    require_reachable(parameters(None, "s3://bucket/text.jsonl"))
    require_reachable(parameters("org/texts:small", "hf://datasets/org/texts@main/a.parquet"))
    # A text that the method does not read need not be there.
    require_reachable(parameters("./prompts.jsonl", None, "minmax"))
