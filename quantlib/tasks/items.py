"""Where the items of tasks are, and whether they are such."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from quantlib.errors import InvalidInputError
from quantlib.recipe import AskedRecipe
from quantlib.task_section import TaskSection
from quantlib.tasks.kinds import KINDS
from quantlib.text.addresses import Text
from quantlib.text.files import TextFile
from quantlib.text.formats import Fault, kind_of, read_rows
from quantlib.text.found import FoundText
from quantlib.text.places import find_text

SHIPPED = Path(__file__).parent / "data"
_SHOWN_FAULTS = 3


def purpose_of(task: TaskSection) -> str:
    """What the items of a task are called among the texts of a recipe."""
    return f"tasks.{task.name}"


def given_items(recipe: AskedRecipe) -> dict[str, Text]:
    """The addresses of items that a recipe gives, by the task's name; not those that ship."""
    return {task.name: _text(task) for task in recipe.tasks.run if task.dataset is not None}


def find_items(task: TaskSection) -> FoundText:
    """Finds the files of a task's items, as :func:`quantlib.text.places.find_text` does.

    Raises:
        InvalidInputError: There are none.
        StepError: The hub cannot be asked.
        StoreError: Object storage cannot be read.
    """
    found = find_text(_text(task))
    if task.dataset is not None:
        return found
    return replace(
        found,
        name=f"the sample of {task.name} that ships with quantlib",
        origin={"kind": "shipped", "purpose": purpose_of(task)},
    )


def read_items(task: TaskSection, files: Iterable[TextFile]) -> list[dict[str, Any]]:
    """The items of a task.

    Args:
        task: Which task, and how many of its items.
        files: That hold them.

    Raises:
        InvalidInputError: A row is no item of this task, or there is none.
    """
    kind, items, faults = KINDS[task.name], [], []
    rows = (
        (file.name, number, row)
        for file in files
        if kind_of(file.name) in ("jsonl", "json", "parquet", "csv")
        for number, row in read_rows(file)
    )
    for name, number, row in islice(rows, task.samples):
        problem = str(row) if isinstance(row, Fault) else kind.problem(row)
        if problem is None:
            items.append(dict(row))
        else:
            faults.append(f"{name}, row {number} {problem}")
    where = f"tasks.{task.name}: {_text(task).name if task.dataset else 'the sample that ships'}"
    columns = ", ".join(" or ".join(names) for names in kind.columns)
    remedy = f"{task.name} needs the columns {columns}"
    if faults:
        more = f"; and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        raise InvalidInputError.one(where, "; ".join(faults[:_SHOWN_FAULTS]) + more, remedy)
    if not items:
        raise InvalidInputError.one(where, "holds no row", remedy)
    return items


def _text(task: TaskSection) -> Text:
    address = task.dataset or str(SHIPPED / f"{task.name}.jsonl")
    return Text(address, "evaluation", task.split, tokens=0)
