"""How a step is started: by an executor input, as Kubeflow starts it, that Argo fills in.

Argo replaces ``{{name}}`` by the text of a variable, and ``{{=expression}}`` by what an expression
in expr-lang gives. Its parameters are texts: that of anything but a string is JSON already. The
paths of artifacts and outputs are known beforehand.
"""

from __future__ import annotations

import json
from typing import Any

from pipelines.interface import Interface, component_of, interface_of

OUTPUTS = "/outputs"
"""Where a step writes; ``/inputs`` is where it reads."""

METRICS = "system.Metrics"
"""What an artifact is called that is metadata only: there is no file of it."""

_SUFFIXES = {"system.HTML": ".html"}  # Argo's UI shows a page by the end of its name


def input_tag(name: str) -> str:
    """The text of an input parameter of the template."""
    return f"{{{{inputs.parameters.{name}}}}}"


def input_path(name: str) -> str:
    """Where a step finds an input artifact."""
    return f"/inputs/{name}"


def output_path(name: str, kind: str = "") -> str:
    """Where a step writes an output parameter, or an artifact of a kind such as ``system.HTML``."""
    return f"{OUTPUTS}/{name}{_SUFFIXES.get(kind, '')}"


def argv_of(step: str) -> list[str]:
    """The command line of a step, with tags for what its inputs are."""
    container = component_of(step).component_spec.implementation.container
    filled = executor_input(interface_of(step))
    return [part.replace("{{$}}", filled) for part in (*container.command, *container.args)]


def executor_input(interface: Interface) -> str:
    """The executor input of a step, with tags for the values of its parameters."""
    values = ",".join(
        f"{json.dumps(name)}:{_json_tag(name, kind)}" for name, kind in interface.parameters.items()
    )
    inputs = {name: _artifact(name, input_path(name)) for name in interface.artifacts}
    outputs = {
        "parameters": {name: {"outputFile": output_path(name)} for name in interface.returns},
        "artifacts": {
            name: _artifact(name, output_path(name, kind), kind)
            for name, kind in interface.makes.items()
        },
        "outputFile": f"{OUTPUTS}/executor_output.json",
    }
    # Only the values are tags, and JSON cannot have {{ anywhere else.
    return (
        f'{{"inputs":{{"parameterValues":{{{values}}},"artifacts":{_compact(inputs)}}},'
        f'"outputs":{_compact(outputs)}}}'
    )


def _json_tag(name: str, kind: type) -> str:
    # In brackets: an expression reads a hyphen in a name as a minus.
    return f"{{{{=toJson(inputs.parameters['{name}'])}}}}" if kind is str else input_tag(name)


def _artifact(name: str, path: str, kind: str = "system.Artifact") -> dict[str, Any]:
    artifact = {
        "name": name,
        "type": {"schemaTitle": kind, "schemaVersion": "0.0.1"},
        "uri": f"file://{path}",
        "metadata": {},
    }
    return {"artifacts": [artifact]}


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
