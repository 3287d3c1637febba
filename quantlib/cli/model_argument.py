"""The model of commands that take it with or without ``--model`` before it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click


def model_argument(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command ``model``, from its first word or from ``--model``."""

    @click.argument("first", metavar="MODEL", required=False)
    @click.option("--model", "named", metavar="MODEL", help="The same as MODEL.")
    @functools.wraps(command)
    def with_model(first: str | None, named: str | None, **others: Any) -> None:
        if first is not None and named is not None:
            raise click.UsageError("MODEL is given twice")
        model = first or named
        if not model:
            raise click.UsageError("Missing argument 'MODEL'.")
        command(model=model, **others)

    return with_model
