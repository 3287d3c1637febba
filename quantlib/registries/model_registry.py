"""Kubeflow's Model Registry: a registered model, a version for each release, and where it is.

By its REST API (api/openapi/model-registry.yaml of kubeflow/model-registry): a newer server answers
at ``v1``, older ones at ``v1alpha3``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantlib.registries.entry import Entry
from quantlib.registries.rest import RegistryError, Rest

_VERSIONS = ("v1", "v1alpha3")
_FRAMEWORK = "vllm"


def register(rest: Rest, entry: Entry) -> str:
    """Enters a published checkpoint, unless it is there.

    Args:
        rest: The registry.
        entry: The checkpoint.

    Returns:
        What is there now, for people.

    Raises:
        RegistryError: The registry fails, or has the version of another checkpoint.
    """
    root = f"api/model_registry/{_api_version(rest)}"
    model = _found(rest, f"{root}/registered_model", {"name": entry.name})
    if model is None:
        about = {"name": entry.name, "description": f"{entry.name}, quantized for vLLM"}
        model = _made(rest, f"{root}/registered_models", about)
    name = str(entry.release)
    version = _found(rest, f"{root}/model_version", {"name": name, "parentResourceId": model["id"]})
    if version is None:
        release = {
            "name": name,
            "registeredModelId": model["id"],
            "description": f"checkpoint {entry.digest}",
            "author": "quantlib",
            "customProperties": _custom(entry),
        }
        version = _made(rest, f"{root}/model_versions", release)
    elif (theirs := _text(version, "manifest")) != entry.manifest:
        what = f"{entry.name} has a version {name} already, of another publication ({theirs})"
        raise RegistryError(f"{what}: publish to one place, or by another name (publish.name)")
    artifacts = f"{root}/model_versions/{version['id']}/artifacts"
    there = [each.get("uri") for each in (rest.ask("GET", artifacts) or {}).get("items", ())]
    if entry.uri not in there:
        artifact = {
            "artifactType": "model-artifact",
            # Its client looks for the first one by the model's name; names are not given twice.
            "name": entry.uri if there else entry.name,
            "uri": entry.uri,
            "modelFormatName": _FRAMEWORK,
            "customProperties": _custom(entry),
        }
        _made(rest, artifacts, artifact)
    return f"{entry.name}, version {name}"


def _api_version(rest: Rest) -> str:
    """The version of the API that the registry answers at."""
    for version in _VERSIONS:
        path = f"api/model_registry/{version}/registered_models"
        if rest.ask("GET", path, parameters={"pageSize": "1"}, missing=(404,)) is not None:
            return version
    raise RegistryError("it is no Model Registry")


def _found(rest: Rest, path: str, parameters: Mapping[str, str]) -> dict[str, Any] | None:
    return rest.ask("GET", path, parameters=parameters, missing=(404,))


def _made(rest: Rest, path: str, about: Mapping[str, Any]) -> dict[str, Any]:
    made = rest.ask("POST", path, about)
    if not made or "id" not in made:
        raise RegistryError("it does not say what it made")
    return made


def _custom(entry: Entry) -> dict[str, dict[str, Any]]:
    texts = {
        name: {"metadataType": "MetadataStringValue", "string_value": value}
        for name, value in entry.properties.items()
    }
    figures = {
        name: {"metadataType": "MetadataDoubleValue", "double_value": value}
        for name, value in entry.figures.items()
    }
    return texts | figures


def _text(version: Mapping[str, Any], name: str) -> str | None:
    found = (version.get("customProperties") or {}).get(name) or {}
    return found.get("string_value")
