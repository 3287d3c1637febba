"""``quantlib validate-recipe``."""

from __future__ import annotations

import click

from quantlib.checks.recipe import load_recipe

_EXAMPLES = """\b
Examples:
  quantlib validate-recipe my-recipe.yaml
  quantlib validate-recipe gptq
"""


@click.command("validate-recipe", epilog=_EXAMPLES)
@click.argument("recipe")
def validate_recipe(recipe: str) -> None:
    """Check RECIPE, a YAML or JSON file or the name of a shipped recipe.

    All faults are printed, each with its path; exit code 2 if there are any.
    """
    loaded = load_recipe(recipe)
    click.echo(f"{recipe}: valid, {loaded.digest()}")
