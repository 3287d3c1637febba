"""MLflow: a run with what a checkpoint was made by and judged by, and a version of a model.

By its REST API 2.0 (https://mlflow.org/docs/latest/api_reference/rest-api.html), so that nothing of
MLflow has to be installed.
"""

from __future__ import annotations

import time
from typing import Any

from quantlib.registries.entry import Entry
from quantlib.registries.rest import RegistryError, Rest
from quantlib.report.model import HTML_NAME

EXPERIMENT = "quantlib"
_API = "api/2.0/mlflow"
_MANIFEST = "quantlib.manifest"
_PROXIED = "mlflow-artifacts:"
_LONGEST = 5000
"""Characters of a value; servers take 6000."""
_PARAMS = 100
"""Of one request; servers take no more."""


def register(rest: Rest, entry: Entry) -> str:
    """Enters a published checkpoint, unless it is there.

    Args:
        rest: The server.
        entry: The checkpoint.

    Returns:
        What is there now, for people.

    Raises:
        RegistryError: The server fails.
    """
    experiment = _experiment(rest)
    run = _run(rest, experiment, entry)
    if run["status"] != "FINISHED":
        _fill(rest, experiment, run, entry)
    said = f"{EXPERIMENT}, run {run['run_id']}"
    if "://" not in entry.uri:
        return said  # MLflow registers no folders that are not its own
    version = _version(rest, run["run_id"], entry)
    return f"{said}; {entry.name}, version {version}"


def _experiment(rest: Rest) -> str:
    path, name = f"{_API}/experiments/get-by-name", {"experiment_name": EXPERIMENT}
    found = rest.ask("GET", path, parameters=name, missing=(404,))
    if found is not None:
        return str(found["experiment"]["experiment_id"])
    made = rest.ask("POST", f"{_API}/experiments/create", {"name": EXPERIMENT}) or {}
    return str(made["experiment_id"])


def _run(rest: Rest, experiment: str, entry: Entry) -> dict[str, Any]:
    """The run of this publication: what another one left, or a new one."""
    wanted = {
        "experiment_ids": [experiment],
        "filter": f"tags.`{_MANIFEST}` = '{entry.manifest}'",
        "max_results": 1,
    }
    found = (rest.ask("POST", f"{_API}/runs/search", wanted) or {}).get("runs")
    if found:
        return dict(found[0]["info"])
    tags = entry.properties | {"uri": entry.uri, "release": str(entry.release)}
    asked = {
        "experiment_id": experiment,
        "run_name": f"{entry.name}-{entry.release}",
        "start_time": _now(),
        "tags": [{"key": f"quantlib.{name}", "value": value} for name, value in tags.items()],
    }
    made = rest.ask("POST", f"{_API}/runs/create", asked) or {}
    return dict(made["run"]["info"])


def _fill(rest: Rest, experiment: str, run: dict[str, Any], entry: Entry) -> None:
    settings = [{"key": key, "value": text[:_LONGEST]} for key, text in entry.settings.items()]
    for start in range(0, len(settings), _PARAMS):
        batch: dict[str, Any] = {"params": settings[start : start + _PARAMS]}
        if not start:
            batch["metrics"] = [
                {"key": name, "value": value, "timestamp": _now(), "step": 0}
                for name, value in entry.figures.items()
            ]
        rest.ask("POST", f"{_API}/runs/log-batch", {"run_id": run["run_id"], **batch})
    if str(run["artifact_uri"]).startswith(_PROXIED):  # else clients write to a store of its own
        folder = f"api/2.0/mlflow-artifacts/artifacts/{experiment}/{run['run_id']}/artifacts"
        rest.ask("PUT", f"{folder}/{HTML_NAME}", entry.page)
    end = {"run_id": run["run_id"], "status": "FINISHED", "end_time": _now()}
    rest.ask("POST", f"{_API}/runs/update", end)


def _version(rest: Rest, run: str, entry: Entry) -> str:
    """The version of the registered model that is this publication."""
    try:
        rest.ask("POST", f"{_API}/registered-models/create", {"name": entry.name})
    except RegistryError as error:
        if "RESOURCE_ALREADY_EXISTS" not in str(error):
            raise
    path = f"{_API}/model-versions/search"
    wanted = {"filter": f"run_id = '{run}'", "max_results": "100"}
    listed = (rest.ask("GET", path, parameters=wanted) or {}).get("model_versions", ())
    for each in listed:
        if (each["name"], each["source"]) == (entry.name, entry.uri):
            return str(each["version"])
    tags = entry.properties | {"release": str(entry.release)}
    asked = {
        "name": entry.name,
        "source": entry.uri,
        "run_id": run,
        "tags": [{"key": f"quantlib.{name}", "value": value} for name, value in tags.items()],
    }
    made = rest.ask("POST", f"{_API}/model-versions/create", asked) or {}
    return str(made["model_version"]["version"])


def _now() -> int:
    return int(time.time() * 1000)
