"""Which texts a recipe needs."""

from __future__ import annotations

from quantlib.checks.scheme import needs_calibration
from quantlib.recipe import AskedRecipe, CalibrationSection, ValidationSection
from quantlib.text.addresses import Purpose

Section = CalibrationSection | ValidationSection


def wanted_texts(recipe: AskedRecipe, *, validated: bool = True) -> dict[Purpose, Section]:
    """The sections of a recipe that name a text which is read.

    Args:
        recipe: What is done.
        validated: Whether the checkpoint is compared with the original.
    """
    sections: dict[Purpose, Section] = {}
    if needs_calibration(recipe):
        sections["calibration"] = recipe.calibration
    if validated:
        sections["evaluation"] = recipe.validation
    return sections
