"""From what was measured to a scheme for every linear, for a budget. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantlib.budget import Budget, parse_budget, shown_bytes
from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.errors import InvalidInputError, Problem
from quantlib.models import BaseModelAdapter
from quantlib.recipe import Recipe
from quantlib.scheme_rules import EXACT
from quantlib.search.candidates import Space, search_space, trial_recipe
from quantlib.search.outcome import Choice, Outcome, Point
from quantlib.search.solve import Option, least_cost, least_size

KL_OF_ERROR = 1.5
"""Nats of KL divergence for an error of one: docs/search.md has the measurement."""

_POINTS = 24

Errors = Mapping[tuple[int, str], Mapping[str, float]]
"""By block and name of a unit, and by candidate."""


def budget_problems(space: Space, text: str) -> list[Problem]:
    """Why nothing can be found for a budget, whatever is measured.

    Args:
        space: What there is to choose from.
        text: The budget.
    """
    where, budget = "quantization.budget", parse_budget(text)
    if not space.units:
        return [Problem(where, "ignore, layers and rules leave nothing to search", "leave it out")]
    if barred := [unit for unit in space.units if not unit.bytes]:
        unit, names = barred[0], ", ".join(space.candidates)
        return [
            Problem(
                "quantization.candidates",
                f"none of {names} goes with {unit.name} of block {unit.block}",
                "add exact, or candidates with smaller groups",
            )
        ]
    if budget.kind == "kl":
        return []
    least, most = (sum(pick(unit.bytes.values()) for unit in space.units) for pick in (min, max))
    limit = _limit(space, budget)
    if limit < least:
        return [
            Problem(
                where,
                f"{budget} is below what the smallest candidates need",
                f"give {_shown(space, budget, least, up=True)} or more, or smaller candidates",
            )
        ]
    if limit >= most and all(EXACT in unit.bytes for unit in space.units):
        return [
            Problem(
                where,
                f"{budget} is enough for all linears as they are",
                f"give less than {_shown(space, budget, most)}",
            )
        ]
    return []


def tried_recipe(
    recipe: Recipe, checkpoint: Checkpoint, adapter: BaseModelAdapter
) -> tuple[Recipe, list[Problem]]:
    """What checks go by before anything is measured, and why nothing can be found for a budget.

    Returns:
        The recipe, or with a budget one as a search may leave it, with every candidate in it.
    """
    budget = recipe.quantization.budget
    if budget is None or adapter.layout.obstacles:
        return recipe, []
    space = search_space(recipe, checkpoint, adapter)
    if problems := budget_problems(space, budget):
        return recipe, problems
    return trial_recipe(recipe, space, adapter), []


def space_line(space: Space, text: str) -> str:
    """What there is to choose from for a budget, as a line."""
    least, most = (sum(pick(unit.bytes.values()) for unit in space.units) for pick in (min, max))
    ends = (
        f"{space.bits(size):.2f} bits ({shown_bytes(space.fixed_bytes + size)})"
        for size in (least, most)
    )
    return (
        f"{parse_budget(text)}: {len(space.units)} parts are searched in "
        f"{len(space.candidates)} schemes ({', '.join(space.candidates)}), from "
        f"{' to '.join(ends)}"
    )


def _limit(space: Space, budget: Budget) -> float:
    """What the units may take."""
    if budget.kind == "bits":
        return budget.value * space.weights / 8 - space.fixed_linear_bytes
    return budget.value - space.fixed_bytes


def _shown(space: Space, budget: Budget, unit_bytes: int, *, up: bool = False) -> str:
    """What units take, in the unit of a budget."""
    if budget.kind == "bits":
        bits = space.bits(unit_bytes)
        return f"{bits + 5e-4 if up else bits:.3f}bits"
    size = space.fixed_bytes + unit_bytes
    # What is shown has four digits, and must not be too little.
    return shown_bytes(1.0005 * size if up else size).replace(" ", "")


def choose(space: Space, errors: Errors, text: str) -> Outcome:
    """Chooses what costs least for a budget.

    Args:
        space: What there is to choose from.
        errors: What was measured of each unit.
        text: The budget.

    Raises:
        InvalidInputError: There is nothing for the budget; or everything would stay exact.
    """
    budget = parse_budget(text)
    options = [
        [
            Option(name, size, KL_OF_ERROR * errors[unit.block, unit.name][name])
            for name, size in unit.bytes.items()
        ]
        for unit in space.units
    ]
    if budget.kind == "kl":
        found = least_size(options, budget.value)
    else:
        found = least_cost(options, _limit(space, budget))
    if found is None:
        raise InvalidInputError(budget_problems(space, text) or _too_good(options, budget))
    if all(option.name == EXACT for option in found):
        raise InvalidInputError.one(
            "quantization.budget",
            f"{budget} leaves every linear exact",
            "give a larger KL, or leave the budget out",
        )
    return Outcome(
        budget=str(budget),
        chosen=_point(space, "chosen", found),
        curve=tuple(_curve(space, options)),
        uniform=tuple(_uniform(space, options)),
        choices=tuple(
            Choice(
                block=unit.block,
                name=unit.name,
                weights=unit.weights,
                chosen=option.name,
                errors=dict(errors[unit.block, unit.name]),
                bytes=dict(unit.bytes),
            )
            for unit, option in zip(space.units, found, strict=True)
        ),
    )


def _too_good(options: Sequence[Sequence[Option]], budget: Budget) -> list[Problem]:
    least = sum(min(option.cost for option in each) for each in options)
    return [
        Problem(
            "quantization.budget",
            f"{budget} is below what the best candidates give: {least:.4g}",
            "give more, or better candidates, such as exact",
        )
    ]


def _point(space: Space, name: str, found: Sequence[Option]) -> Point:
    size = sum(option.size for option in found)
    return Point(
        name=name,
        bits=space.bits(size),
        bytes=space.fixed_bytes + size,
        kl=sum(option.cost for option in found),
    )


def _curve(space: Space, options: Sequence[Sequence[Option]]) -> list[Point]:
    """The best choices for sizes between the least and the most, as far as they differ."""
    least, most = (
        sum(pick(option.size for option in each) for each in options) for pick in (min, max)
    )
    points: dict[int, Point] = {}
    for step in range(_POINTS + 1):
        # Closer together where bits are few and the curve is steep.
        size = least + (most - least) * (step / _POINTS) ** 2
        if (found := least_cost(options, size)) is not None:
            point = _point(space, "best", found)
            points.setdefault(point.bytes, point)
    return [points[size] for size in sorted(points)]


def _uniform(space: Space, options: Sequence[Sequence[Option]]) -> list[Point]:
    """All units in one candidate, for each that all can be."""
    found = []
    for name in space.candidates:
        picked = [option for each in options for option in each if option.name == name]
        if name != EXACT and len(picked) == len(options):
            found.append(_point(space, name, picked))
    return found
