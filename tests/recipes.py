"""A recipe that takes the pipeline in a moment, judged by transformers, whatever comes out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantlib.checks.recipe import parse_recipe
from quantlib.recipe import Recipe

QUICK: dict[str, Any] = {
    "quantization": {"weights": {"bits": 4, "group_size": 32}},
    "calibration": {"num_samples": 8, "sequence_length": 64},
    "num_ranges": 2,
    "validation": {
        "engine": "transformers",
        "num_samples": 4,
        "sequence_length": 64,
        "prompts": ["The engine"],
        "max_new_tokens": 4,
        "answer_tokens": 4,
        "thresholds": {
            "max_perplexity_increase": 10,
            "max_kl_mean": 20,
            "min_top1_agreement": 0.001,
        },
    },
}


def quick_recipe(model: Path | str, **changes: Any) -> Recipe:
    """That recipe for a model, with other sections in the place of its own."""
    return settled_recipe(QUICK | {"model": str(model)} | changes)


def settled_recipe(data: Mapping[str, Any]) -> Recipe:
    """A recipe that gives every group size as a number, or leaves it at the default's.

    Outliers are suppressed only where it says so.
    """
    asked = parse_recipe(data).model_dump()
    if asked["outlier_suppression"] == "auto":
        asked["outlier_suppression"] = None
    return Recipe.model_validate(asked)
