"""A recipe as somebody chooses it in a form: one by its name, with a scheme and changes to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantlib.checks.recipe import parse_recipe
from quantlib.config import YamlFormat, load_config
from quantlib.errors import InvalidInputError
from quantlib.recipe import SHIPPED_RECIPES, AskedRecipe
from quantlib.schemes import SCHEMES

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
        scheme: One of ``SCHEMES``, which takes the place of the recipe's.
        changes: Fields that take the place of the recipe's, nested as it is.
        recipes: Recipes as text, by their names.

    Raises:
        InvalidInputError: It is none; with one problem for each fault.
    """
    data = _data(name, recipes or {})
    if scheme not in (AS_IN_RECIPE, *SCHEMES):
        raise InvalidInputError.one("scheme", f"{scheme!r} is none of {', '.join(SCHEMES)}")
    data = merged(data, {"quantization": SCHEMES.get(scheme, {})})
    origin = name if name in (*(recipes or {}), *shipped_recipes()) else "recipe"
    return parse_recipe(merged(data, changes or {}), origin)


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
    try:
        data = YamlFormat().parse(recipes.get(name, name))
    except ValueError as error:
        raise InvalidInputError.one("recipe", f"cannot be parsed: {error}") from None
    if not isinstance(data, dict):
        known = ", ".join((*recipes, *shipped))
        raise InvalidInputError.one("recipe", f"{name!r} is none of {known}, and no mapping")
    return data


def merged(data: Any, changes: Mapping[str, Any]) -> Any:
    """A recipe's data with fields replaced, those of nested sections one by one."""
    if not isinstance(data, Mapping):  # what is wrong with it is said by the check
        return changes or data
    result = dict(data)
    for name, change in changes.items():
        known = result.get(name)
        result[name] = merged(known or {}, change) if isinstance(change, Mapping) else change
    return result
