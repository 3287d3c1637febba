"""Which recipes have their outliers suppressed without saying so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantlib.checkpoint.source import FolderSource
from quantlib.checks.group_size import settle
from quantlib.checks.recipe import parse_recipe, recipe_from_text
from quantlib.checks.scheme import needs_calibration
from quantlib.cli.quantize import build_recipe
from quantlib.errors import InvalidInputError
from quantlib.models import open_model
from quantlib.recipe import AskedRecipe, OutlierSuppressionSection
from quantlib.schemes import SCHEMES

SMOOTHED = OutlierSuppressionSection(method="smooth_quant", options={"alpha": "auto"})
OWN = {"method": "smooth_quant", "options": {"alpha": 0.5}}


def of_scheme(scheme: str, more: dict[str, Any] | None = None, **quantization: Any) -> AskedRecipe:
    return parse_recipe({"quantization": {**SCHEMES[scheme], **quantization}, **(more or {})})


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (of_scheme("MXFP4"), SMOOTHED),
        (of_scheme("MXFP4", {"outlier_suppression": "auto"}), SMOOTHED),
        (of_scheme("MXFP4", {"outlier_suppression": None}), None),
        (of_scheme("MXFP4", {"outlier_suppression": OWN}), OutlierSuppressionSection(**OWN)),
        (of_scheme("MXFP4", method="minmax"), None),  # which reads no text
        (of_scheme("MXFP4", budget="5bits", candidates=["MXFP4", "exact"]), None),
        (of_scheme("NVFP4"), SMOOTHED),
        (of_scheme("MXFP4A16"), None),
        (of_scheme("FP8_BLOCK"), None),
        (parse_recipe({"quantization": {"weights": {"group_size": 32}}}), None),
    ],
)
def test_inputs_in_fp4_are_smoothed_where_a_method_calibrates(
    asked: AskedRecipe, wanted: OutlierSuppressionSection | None, tiny_llama: Path
) -> None:
    adapter = open_model(FolderSource(tiny_llama))[1]
    settled = settle(asked, adapter).recipe
    assert settled.outlier_suppression == wanted
    assert settle(parse_recipe(settled.model_dump()), adapter).recipe == settled
    assert recipe_from_text(settled.canonical_json()) == settled


def test_a_model_without_a_place_for_the_scales_goes_without(tiny_llama: Path) -> None:
    adapter = open_model(FolderSource(tiny_llama), folds=False)[1]
    assert settle(of_scheme("MXFP4"), adapter).recipe.outlier_suppression is None
    stated = of_scheme("MXFP4", {"outlier_suppression": OWN})
    assert settle(stated, adapter).recipe.outlier_suppression is not None  # and is refused


def test_auto_alone_needs_no_text() -> None:
    assert not needs_calibration(of_scheme("MXFP4", method="minmax"))
    assert needs_calibration(of_scheme("MXFP4", {"outlier_suppression": OWN}, method="minmax"))


def test_the_steps_after_the_plan_take_a_settled_recipe() -> None:
    with pytest.raises(InvalidInputError, match="outlier_suppression: auto is settled by the plan"):
        recipe_from_text(of_scheme("MXFP4").canonical_json())


@pytest.mark.parametrize("given", ["none", 3, ["smooth_quant"]])
def test_anything_else_is_refused_with_one_fault(given: Any) -> None:
    with pytest.raises(InvalidInputError, match="must be auto, null or a section") as error:
        parse_recipe({"outlier_suppression": given})
    assert len(error.value.problems) == 1


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        (None, "auto"),
        ("auto", "auto"),
        ("none", None),
        ("smooth_quant", OutlierSuppressionSection()),
    ],
)
def test_the_command_line_says_none_and_auto(option: str | None, wanted: Any) -> None:
    options = {"layer_wise": False, "layers": None, "scheme": "MXFP4"}
    asked = build_recipe(None, options | {"outlier_suppression": option})
    assert asked.outlier_suppression == wanted
