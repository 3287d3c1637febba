"""What each step takes and gives, as its component says it, and how it is handed to a step."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Any

from quantlib.runtime.distribution import needing

_KINDS: dict[str, type] = {"String": str, "Integer": int, "List": list, "Dict": dict}


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a step.

    Attributes:
        parameters: Types of the input parameters.
        artifacts: Names of the input artifacts.
        returns: Types of the output parameters.
        makes: Types of the output artifacts, such as ``system.HTML``.
    """

    parameters: Mapping[str, type]
    artifacts: tuple[str, ...]
    returns: Mapping[str, type]
    makes: Mapping[str, str]


@cache
def interface_of(step: str) -> Interface:
    """The interface of a step of ours."""
    specification = component_of(step).component_spec
    inputs, outputs = specification.inputs or {}, specification.outputs or {}
    return Interface(
        {name: _kind(spec.type) for name, spec in inputs.items() if "@" not in spec.type},
        tuple(name for name, spec in inputs.items() if "@" in spec.type),
        {name: _kind(spec.type) for name, spec in outputs.items() if "@" not in spec.type},
        {name: spec.type.partition("@")[0] for name, spec in outputs.items() if "@" in spec.type},
    )


def component_of(step: str):  # type: ignore[no-untyped-def]  # kfp's, which has no types
    """The kfp component of a step.

    Raises:
        QuantlibError: kfp is not installed.
    """
    with needing("pipelines", "kfp"):
        return getattr(importlib.import_module(f"components.{step}"), step)


def artifact(
    path: str, kind: str = "system.Artifact", metadata: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A file as an executor input holds it."""
    return {
        "name": PurePath(path).stem,
        "type": {"schemaTitle": kind, "schemaVersion": "0.0.1"},
        "uri": f"file://{path}",
        "metadata": dict(metadata or {}),
    }


def executor_input(
    values: str,
    inputs: Mapping[str, list[dict[str, Any]]],
    returns: Mapping[str, str],
    makes: Mapping[str, dict[str, Any]],
    output_file: str,
) -> str:
    """What a step is started with (kubeflow/pipelines, api/v2alpha1/pipeline_spec.proto).

    Args:
        values: Its input parameters, as the text of a JSON object.
        inputs: Its input artifacts by name.
        returns: Where it writes its output parameters.
        makes: Its output artifacts.
        output_file: Where it writes the executor output.
    """
    taken = {name: {"artifacts": artifacts} for name, artifacts in inputs.items()}
    outputs = {
        "parameters": {name: {"outputFile": path} for name, path in returns.items()},
        "artifacts": {name: {"artifacts": [made]} for name, made in makes.items()},
        "outputFile": output_file,
    }
    texts = (json.dumps(part, separators=(",", ":")) for part in (taken, outputs))
    return '{{"inputs":{{"parameterValues":{},"artifacts":{}}},"outputs":{}}}'.format(
        values, *texts
    )


def _kind(name: str) -> type:
    return _KINDS[name.partition("[")[0]]
