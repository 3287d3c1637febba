"""A recipe as somebody chooses it in a form: one by its name, with a scheme and changes to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantlib.checks.recipe import merged, parse_recipe, parsed_text, with_scheme
from quantlib.config import load_config
from quantlib.errors import InvalidInputError, did_you_mean
from quantlib.recipe import SHIPPED_RECIPES, AskedRecipe

AS_IN_RECIPE = "as in the recipe"


def shipped_recipes() -> dict[str, Path]:
    """The files of the recipes that ship, by the names of these."""
    return {path.stem: path for path in sorted(SHIPPED_RECIPES.iterdir())}


def chosen_recipe(
    name: str,
    scheme: str = AS_IN_RECIPE,
    changes: Mapping[str, Any] | None = None,
    recipes: Mapping[str, str] | None = None,
) -> AskedRecipe:
    """The recipe that was chosen.

    Args:
        name: Of one in ``recipes`` or of one that ships; or a recipe itself, as YAML or JSON text.
        scheme: The name of a scheme, which takes the place of the recipe's.
        changes: Fields that take the place of the recipe's, nested as it is.
        recipes: Recipes as text, by their names.

    Raises:
        InvalidInputError: It is none; with one problem for each fault.
    """
    data = _data(name, recipes or {})
    asked = None if scheme == AS_IN_RECIPE else scheme
    data, problems = with_scheme(data, asked, "scheme")
    origin = name if name in (*(recipes or {}), *shipped_recipes()) else "recipe"
    return parse_recipe(merged(data, changes or {}), origin, problems)


def recipe_of(parameters: Mapping[str, Any]) -> AskedRecipe:
    """The recipe that a step's parameters choose; after the first step, they hold it as text.

    Raises:
        InvalidInputError: It is none.
    """
    return chosen_recipe(
        parameters["recipe"],
        parameters.get("scheme", AS_IN_RECIPE),
        parameters.get("recipe_changes", {}),
        parameters.get("recipes", {}),
    )


def _data(name: str, recipes: Mapping[str, str]) -> Any:
    shipped = shipped_recipes()
    if name not in recipes and name in shipped:
        return load_config(shipped[name])
    data = parsed_text(recipes.get(name, name))
    if not isinstance(data, dict):
        known = (*recipes, *shipped)
        raise InvalidInputError.one(
            "recipe",
            f"{name!r} is none of {', '.join(known)}, and no mapping",
            did_you_mean(name, known),
        )
    return data
