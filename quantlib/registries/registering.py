"""Tells every registry that the environment names of what was published."""

from __future__ import annotations

import base64
import os
import sys

from quantlib.errors import QuantlibError
from quantlib.publishing.destination import Draft, Publication
from quantlib.recipe import Recipe
from quantlib.registries import mlflow, model_registry
from quantlib.registries.entry import entry_of
from quantlib.registries.rest import Rest
from quantlib.telemetry.settings import MLFLOW_VARIABLE, MODEL_REGISTRY_VARIABLE

TOKEN_VARIABLES = {
    MODEL_REGISTRY_VARIABLE: "QUANTLIB_MODEL_REGISTRY_TOKEN",
    MLFLOW_VARIABLE: "MLFLOW_TRACKING_TOKEN",
}
"""Environment variables of bearer tokens; MLflow's is its own."""

_REGISTRIES = {
    MODEL_REGISTRY_VARIABLE: ("Model Registry", model_registry.register),
    MLFLOW_VARIABLE: ("MLflow", mlflow.register),
}


def register_everywhere(draft: Draft, publication: Publication, recipe: Recipe) -> None:
    """Enters what was published; says in a line each what came of it, and never fails.

    What could not be entered is by the next run that publishes the same.

    Args:
        draft: What was published.
        publication: Where it is.
        recipe: What it was made by.
    """
    for variable, (name, register) in _REGISTRIES.items():
        if not (url := os.environ.get(variable)):
            continue
        try:
            done = register(
                Rest(url, _authorization(variable)), entry_of(draft, publication, recipe)
            )
            print(f"{name} {url}: {done}", flush=True)
        except (QuantlibError, KeyError, TypeError, IndexError) as error:
            # One that answers in another way than its API says is no reason to fail either.
            what = str(error) if isinstance(error, QuantlibError) else f"its answer lacks {error}"
            line = f"warning: {name} {url}: not registered: {what}; the next run tries again"
            print(line, file=sys.stderr, flush=True)


def _authorization(variable: str) -> str | None:
    if token := os.environ.get(TOKEN_VARIABLES[variable]):
        return f"Bearer {token}"
    if variable == MLFLOW_VARIABLE and (user := os.environ.get("MLFLOW_TRACKING_USERNAME")):
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"
    return None
