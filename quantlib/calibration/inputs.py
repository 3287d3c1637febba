"""The token windows that a recipe asks for."""

from __future__ import annotations

from quantlib.calibration.corpus import Text, Windows, load_tokenizer, token_windows
from quantlib.checkpoint.source import FileSource
from quantlib.recipe import Recipe

EVALUATION_SEED = 0
"""Held-out windows do not depend on the recipe's seed: runs stay comparable."""


def calibration_windows(recipe: Recipe, source: FileSource) -> Windows:
    """The windows that a recipe calibrates on.

    Args:
        recipe: Names the text, the number of windows and their length.
        source: The model, for its tokenizer.

    Raises:
        InvalidInputError: The text cannot be read or has too few tokens.
    """
    section = recipe.calibration
    text = Text(section.dataset, "calibration", section.text_field, section.split)
    return token_windows(
        text, load_tokenizer(source), section.num_samples, section.sequence_length, section.seed
    )


def evaluation_windows(recipe: Recipe, source: FileSource) -> Windows:
    """The windows that a recipe's checkpoint is judged on.

    Args:
        recipe: Names the text, the number of windows and their length.
        source: The model, for its tokenizer.

    Raises:
        InvalidInputError: The text cannot be read or has too few tokens.
    """
    section = recipe.validation
    text = Text(section.dataset, "evaluation", section.text_field, section.split)
    return token_windows(
        text, load_tokenizer(source), section.num_samples, section.sequence_length, EVALUATION_SEED
    )
