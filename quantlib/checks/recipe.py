"""Reads a recipe from a file or a text, and checks all that can be checked of it alone.

A recipe is a YAML or JSON file. All faults of one are reported together, each with its path
(``quantization.weights.bits``). No part that is imported here imports torch, so that a recipe is
checked in an instant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quantlib.checks.scheme import open_sizes, scheme_problems
from quantlib.checks.suppression import possible_suppression
from quantlib.config import YamlFormat, load_config, named_file
from quantlib.errors import InvalidInputError, Problem, collected
from quantlib.recipe import SHIPPED_RECIPES, AskedRecipe, Recipe
from quantlib.runtime.pydantic_faults import field_problems, without_faults
from quantlib.schemes import SCHEMES, checked_scheme


def parse_recipe(
    data: Mapping[str, Any], origin: str = "recipe", found: Iterable[Problem] = ()
) -> AskedRecipe:
    """Validates parsed data.

    Args:
        data: The mapping that a recipe file holds.
        origin: What to call the recipe in error messages.
        found: What was found wrong with what the data was made of, to be said with the rest.

    Raises:
        InvalidInputError: With one problem per fault.
    """
    problems: list[Problem] = []
    try:
        recipe = AskedRecipe.model_validate(data)
    except ValidationError as error:
        problems = field_problems(error, AskedRecipe)
        recipe = without_faults(data, error, AskedRecipe)
    problems = [*found, *problems, *scheme_problems(recipe)]
    if problems:
        raise InvalidInputError(
            Problem(f"{origin}: {problem.where}", problem.what, problem.remedy)
            for problem in problems
        )
    return recipe


def recipe_path(name: Path | str) -> Path:
    """The file of a recipe given by path, or by the name of a shipped recipe (``gptq``)."""
    return named_file(name, SHIPPED_RECIPES, "recipe")


def load_recipe(path: Path | str, scheme: str | None = None, **quantization: object) -> AskedRecipe:
    """Reads and validates a recipe file, or a shipped recipe by its name (``gptq``).

    Args:
        path: The file or the name.
        scheme: In the place of the recipe's, by its name; None for the recipe's.
        quantization: Fields of that section in the place of the recipe's, and ``group_size`` of its
            weights; None for the recipe's.

    Raises:
        InvalidInputError: With one problem per fault of the file.
    """
    data, problems = with_scheme(load_config(recipe_path(path)), scheme, "--scheme")
    changes = {name: value for name, value in quantization.items() if value is not None}
    section = data.setdefault("quantization", {}) if changes else None
    if isinstance(section, dict):
        size = changes.pop("group_size", None)
        if size is not None and isinstance(section.setdefault("weights", {}), dict):
            section["weights"]["group_size"] = size
        section.update(changes)
    return parse_recipe(data, str(path), problems)


def with_scheme(data: Any, scheme: str | None, where: str) -> tuple[Any, list[Problem]]:
    """A recipe's data with a scheme in the place of its own, and what is wrong with the scheme.

    Args:
        data: Of the recipe.
        scheme: A name; None for the recipe's.
        where: What names it, for messages.
    """
    if scheme is None:
        return data, []
    try:
        return merged(data, {"quantization": SCHEMES[checked_scheme(scheme)]}), []
    except ValueError as error:
        return data, [Problem(where, f"{scheme!r} {error}")]


def merged(data: Any, changes: Mapping[str, Any]) -> Any:
    """A recipe's data with fields replaced, those of nested sections one by one."""
    if not isinstance(data, Mapping):  # what is wrong with it is said by the check
        return changes or data
    result = dict(data)
    for name, change in changes.items():
        known = result.get(name)
        result[name] = merged(known or {}, change) if isinstance(change, Mapping) else change
    return result


def recipe_problems(names: Iterable[Path | str]) -> list[Problem]:
    """What is wrong with recipes, as :func:`load_recipe` says it of each."""
    problems: list[Problem] = []
    for name in names:
        with collected(problems):
            load_recipe(name)
    return problems


def parsed_text(text: str) -> Any:
    """What a recipe's text holds, as YAML or JSON: any data.

    Raises:
        InvalidInputError: It cannot be parsed.
    """
    try:
        return YamlFormat().parse(text)
    except ValueError as error:
        raise InvalidInputError.one("recipe", f"cannot be parsed: {error}") from None


def asked_from_text(text: str) -> AskedRecipe:
    """A recipe given as YAML or JSON text, as pipeline parameters carry it.

    Raises:
        InvalidInputError: ``text`` is no valid recipe.
    """
    data = parsed_text(text)
    if not isinstance(data, dict):
        raise InvalidInputError.one("recipe", "does not hold a mapping")
    return parse_recipe(data)


def recipe_from_text(text: str) -> Recipe:
    """A recipe as the steps after the plan are given it.

    Raises:
        InvalidInputError: ``text`` is no valid recipe, or leaves the group size to the plan.
    """
    recipe = asked_from_text(text)
    for slot in open_sizes(recipe.quantization):
        where = "weights" if slot is None else f"schemes.{slot}"
        raise InvalidInputError.one(
            f"recipe: quantization.{where}.group_size",
            "auto is settled by the plan step, whose recipe the steps after it take",
            "give that one, or a number",
        )
    suppression = possible_suppression(recipe)
    if suppression is not None and recipe.outlier_suppression == "auto":
        raise InvalidInputError.one(
            "recipe: outlier_suppression",
            "auto is settled by the plan step, whose recipe the steps after it take",
            "give that one, null, or a section",
        )
    settled = None if suppression is None else suppression.model_dump()
    return Recipe.model_validate(recipe.model_dump() | {"outlier_suppression": settled})
