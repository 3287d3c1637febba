"""What is wrong with a recipe on a model, without a store."""

from __future__ import annotations

from quantlib.checkpoint.source import FileSource
from quantlib.checks.run import opened_problems
from quantlib.errors import InvalidInputError, Problem
from quantlib.models import open_model
from quantlib.recipe import Recipe


def input_problems(recipe: Recipe, source: FileSource) -> list[Problem]:
    """What the commands say before any work."""
    try:
        checkpoint, adapter = open_model(source)
    except InvalidInputError as error:
        return list(error.problems)
    return opened_problems(recipe, checkpoint, adapter)
