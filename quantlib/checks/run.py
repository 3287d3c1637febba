"""Why a run cannot work, found before anything is written."""

from __future__ import annotations

from pathlib import Path

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.checks.group_size import settle
from quantlib.checks.machine import destination_problems, space_problems, store_problems
from quantlib.checks.model import model_problems, sharing_problems
from quantlib.checks.places import local_path
from quantlib.checks.scheme import needs_calibration
from quantlib.checks.suppression import possible_suppression
from quantlib.checks.tasks import task_problems
from quantlib.errors import InvalidInputError, Problem
from quantlib.evaluation.judging import writes_plain_model
from quantlib.models import BaseModelAdapter, open_model
from quantlib.recipe import AskedRecipe, Recipe
from quantlib.search.choosing import tried_recipe
from quantlib.sources import FolderAddress, parse_address, source_problems
from quantlib.sources.inspection import tokenizer_problems
from quantlib.steps.texts import text_problems, unread_problems
from quantlib.text.wanted import wanted_texts


def input_problems(
    asked: AskedRecipe,
    source: str,
    store: str,
    gpus: int = 1,
    output: Path | None = None,
    validated_on: str | None = None,
    *,
    validated: bool = True,
) -> list[Problem]:
    """Why a run cannot work: the model, the recipe on it, the texts, and room for the store.

    A model on the hub and a GGUF file are checked further when they have been fetched.

    Args:
        asked: What to do.
        source: The model.
        store: The store's address.
        gpus: What validation spreads a model over.
        output: The folder that the checkpoint is copied to; None where it stays in the store.
        validated_on: auto, cpu or cuda; None where nothing is validated in the store's folder.
        validated: Whether the checkpoint will be compared with the original.
    """
    problems = destination_problems(store) + store_problems(store) + _unused_text_problems(asked)
    faults = source_problems(source)
    address = None if faults else parse_address(source)
    if isinstance(address, FolderAddress):
        files = FolderSource(address.path)
        if wanted_texts(asked, validated=validated):
            faults = tokenizer_problems(files)
        try:
            checkpoint, adapter = open_model(files, folds=possible_suppression(asked) is not None)
        except InvalidInputError as error:
            return [*problems, *faults, *error.problems]
        recipe = settle(asked, adapter).recipe
        if not faults:
            faults = opened_problems(recipe, checkpoint, adapter, validated=validated)
        if not faults:
            faults = sharing_problems(recipe.quantization, adapter, gpus, "gpus")
            if not store.startswith("s3://"):
                folder = Path(store.removeprefix("file://"))
                plain = validated_on is not None and writes_plain_model(
                    recipe, files, adapter, validated_on
                )
                problems += space_problems(recipe, checkpoint, adapter, folder, output, plain)
    else:
        faults += unread_problems(asked, validated=validated)
        faults += task_problems(asked) if validated else []
    return problems + faults


def opened_problems(
    recipe: Recipe, checkpoint: Checkpoint, adapter: BaseModelAdapter, *, validated: bool = True
) -> list[Problem]:
    """Everything about a recipe, a model and the texts that makes quantizing impossible.

    Args:
        recipe: What to do.
        checkpoint: The model.
        adapter: Its family.
        validated: Whether the checkpoint will be compared with the original.
    """
    tried, problems = tried_recipe(recipe, checkpoint, adapter)
    return [
        *problems,
        *model_problems(tried, checkpoint, adapter, validated=validated),
        *text_problems(recipe, checkpoint.source, checkpoint, adapter, validated=validated),
        *(task_problems(recipe, checkpoint.source) if validated else ()),
    ]


def _unused_text_problems(recipe: AskedRecipe) -> list[Problem]:
    """Calibration text that is named although the method looks at none, and is not there."""
    dataset = recipe.calibration.dataset
    if dataset is None or needs_calibration(recipe) or (path := local_path(dataset)) is None:
        return []
    if path.exists() or not (dataset.startswith(("/", ".", "~")) or path.suffix):
        return []
    return [Problem("calibration.dataset", f"{dataset}: there is no such file or folder")]
