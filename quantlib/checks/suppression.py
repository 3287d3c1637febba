"""Settles ``outlier_suppression: auto``. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantlib.checks.scheme import needs_hidden_states
from quantlib.outlier_suppression import outlier_suppression_registry
from quantlib.recipe import AskedRecipe, OutlierSuppressionSection

if TYPE_CHECKING:
    from quantlib.models.adapter import BaseModelAdapter

SMOOTHED = OutlierSuppressionSection(method="smooth_quant", options={"alpha": "auto"})
"""What recipes with inputs in FP4 get."""

_COARSE = ("mxfp4", "nvfp4")
"""Inputs whose rounding costs more than that of the weights (docs/methods.md)."""


def possible_suppression(asked: AskedRecipe) -> OutlierSuppressionSection | None:
    """What a recipe gets on models that have a place for the scales; None for nothing.

    Args:
        asked: A valid recipe.
    """
    if asked.outlier_suppression != "auto":
        return asked.outlier_suppression
    section = asked.quantization
    coarse = section.activations in _COARSE and section.budget is None
    return SMOOTHED if coarse and needs_hidden_states(section) else None


def settled_suppression(
    asked: AskedRecipe, adapter: BaseModelAdapter
) -> OutlierSuppressionSection | None:
    """What a recipe gets on a model.

    Args:
        asked: A valid recipe.
        adapter: The model's family.
    """
    possible = possible_suppression(asked)
    if possible is None or asked.outlier_suppression != "auto":
        return possible
    suppressor = outlier_suppression_registry.get_suppressor(possible.method)(possible.options)
    return None if suppressor.problems(adapter) else possible
