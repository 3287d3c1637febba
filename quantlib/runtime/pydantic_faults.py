"""What pydantic finds wrong with a file of ours."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from quantlib.errors import Problem

_SHOWN = 3

Model = TypeVar("Model", bound=BaseModel)


def faults_of(error: ValidationError) -> str:
    """The first faults, each with the path of its field; the others are counted."""
    faults = [
        ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"])))
        for fault in error.errors(include_url=False)
    ]
    more = len(faults) - _SHOWN
    return "; ".join(faults[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def field_problems(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """All faults, each with the path of its field; an unknown key with what it may stand for.

    Args:
        error: What was found.
        model: What the data was to be.
    """
    problems = []
    for fault in error.errors():
        path = ".".join(str(part) for part in fault["loc"]) or "(top level)"
        if fault["type"] == "extra_forbidden":
            problems.append(Problem(path, "unknown key", _suggestion(fault["loc"], model)))
            continue
        message = fault["msg"].removeprefix("Value error, ")
        given = "" if isinstance(fault["input"], (dict, list)) else f" (given: {fault['input']!r})"
        problems.append(Problem(path, message[0].lower() + message[1:] + given))
    return problems


def _suggestion(path: Sequence[int | str], model: type[BaseModel]) -> str:
    """The key that an unknown one may stand for: of its own section first, else of any."""
    *section, given = map(str, path)
    known = list(_keys(model))
    beside = {key.rpartition(".")[2]: key for key in known if key.split(".")[:-1] == section}
    everywhere = {key.rpartition(".")[2]: key for key in reversed(known)}
    for keys in (beside, everywhere):
        found = difflib.get_close_matches(given, list(keys), n=1, cutoff=0.7)
        if found:
            return f"did you mean {keys[found[0]]}?"
    return ""


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _keys(inner, f"{prefix}{name}.")


def without_faults(data: Mapping[str, Any], error: ValidationError, model: type[Model]) -> Model:
    """What the data is with defaults in place of its faults, so that the rest is checked too.

    Args:
        data: What was to be a model whose fields all have defaults.
        error: What is wrong with it.
        model: The model.
    """
    remaining = copy.deepcopy(dict(data))
    for fault in error.errors():
        parent: Any = remaining
        *path, last = fault["loc"] or ("",)
        for part in path:
            parent = parent.get(part) if isinstance(parent, dict) else None
        if isinstance(parent, dict):
            parent.pop(last, None)
        elif path:
            remaining.pop(str(path[0]), None)
    try:
        return model.model_validate(remaining)
    except ValidationError:
        return model()
