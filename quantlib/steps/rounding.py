"""The model rounded to nearest in a recipe's scheme: what its method is held against.

It is made by the steps that make any checkpoint, in the same format, so that an engine treats both
alike; and they find it in the store for the next method of that scheme.
"""

from __future__ import annotations

from quantlib.checks.scheme import needs_calibration, resolve_format
from quantlib.evaluation.limits import ROUNDING
from quantlib.recipe import Recipe
from quantlib.steps.calibrate import calibrate
from quantlib.steps.layout import open_receipt
from quantlib.steps.merge import merge
from quantlib.steps.quantize import quantize
from quantlib.steps.smooth import smooth
from quantlib.store import Receipt, Store

NOT_WITHOUT_TEXT = (
    "the scheme has scales of inputs or of a cache, which rounding alone does not give"
)


def rounding_recipe(recipe: Recipe) -> Recipe:
    """The recipe that rounds to nearest in the scheme and format of another one."""
    section = recipe.quantization
    rounded = section.model_copy(
        update={
            "method": ROUNDING,
            "options": {},
            "format": resolve_format(section),
            "budget": None,
            "candidates": (),
            "searched": None,
        }
    )
    changes = {"quantization": rounded, "outlier_suppression": None, "num_ranges": 1}
    return recipe.model_copy(update=changes)


def round_model(
    store: Store, recipe: Recipe, model: Receipt, planned: Receipt, device: str
) -> Receipt | None:
    """Rounds a model in a recipe's scheme.

    Args:
        store: Where the steps' files are.
        recipe: Whose scheme is taken.
        model: The fetch step's receipt.
        planned: The plan step's receipt, or another one that names the windows of the held-out
            text.
        device: auto, cpu or cuda.

    Returns:
        The merge step's receipt; None where scales of the scheme come from text alone.

    Raises:
        QuantizationError: A linear could not be rounded.
    """
    rounding = rounding_recipe(recipe)
    if needs_calibration(rounding):
        return None
    whole = f"0:{open_receipt(store, model)[1].blocks}"
    alone = planned.model_copy(update={"facts": {"ranges": [whole]}})
    calibration = calibrate(store, rounding, model, alone, device)
    smoothing = smooth(store, rounding, model, calibration)
    made = quantize(store, rounding, whole, model, calibration, smoothing, device)
    return merge(store, rounding, model, [made])
