"""What can be known of tasks before anything is fetched."""

from __future__ import annotations

from typing import Any

from quantlib.checkpoint.source import FileSource
from quantlib.errors import InvalidInputError, Problem, StoreError, collected
from quantlib.recipe import AskedRecipe
from quantlib.tasks.harness import harness_version
from quantlib.tasks.items import find_items, read_items
from quantlib.tasks.prepared import prepare
from quantlib.tasks.served import server_version
from quantlib.text.places import gather


def task_problems(recipe: AskedRecipe, source: FileSource | None = None) -> list[Problem]:
    """Why the tasks of a recipe cannot be asked; items that are elsewhere are looked for only.

    Args:
        recipe: Names the tasks.
        source: The model that they are asked; None where it is not at hand.
    """
    problems: list[Problem] = []
    items: dict[str, list[dict[str, Any]]] = {}
    for task in recipe.tasks.run:
        try:
            found = find_items(task)
            if not found.is_remote:
                with gather(found) as gathered:
                    items[task.name] = read_items(task, gathered.files)
        except InvalidInputError as error:
            problems += error.problems
        except StoreError as error:
            problems.append(Problem(error.address, error.what))
    if source is not None and items:
        here = [task for task in recipe.tasks.run if task.name in items]
        with collected(problems):
            prepare(recipe.tasks.model_copy(update={"run": tuple(here)}), items, source)
    return problems


def uninstalled_problems(recipe: AskedRecipe) -> list[Problem]:
    """That what serves and asks is not installed here."""
    problems: list[Problem] = []
    for check in (server_version, harness_version) if recipe.tasks.run else ():
        with collected(problems):
            check()
    return problems
