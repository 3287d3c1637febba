"""How a step is started: by an executor input, as Kubeflow starts it, that Argo fills in.

Argo replaces ``{{name}}`` by the text of a variable, and ``{{=expression}}`` by what an expression
in expr-lang gives. Its parameters are texts: that of anything but a string is JSON already. The
paths of artifacts and outputs are known beforehand.
"""

from __future__ import annotations

import json

from pipelines.interface import artifact, component_of, executor_input, interface_of

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
    interface = interface_of(step)
    values = ",".join(
        f"{json.dumps(name)}:{_json_tag(name, kind)}" for name, kind in interface.parameters.items()
    )
    # Only the values are tags: JSON cannot have {{ anywhere else.
    filled = executor_input(
        f"{{{values}}}",
        {name: [artifact(input_path(name))] for name in interface.artifacts},
        {name: output_path(name) for name in interface.returns},
        {name: artifact(output_path(name, kind), kind) for name, kind in interface.makes.items()},
        f"{OUTPUTS}/executor_output.json",
    )
    container = component_of(step).component_spec.implementation.container
    return [part.replace("{{$}}", filled) for part in (*container.command, *container.args)]


def _json_tag(name: str, kind: type) -> str:
    # In brackets: an expression reads a hyphen in a name as a minus.
    return f"{{{{=toJson(inputs.parameters['{name}'])}}}}" if kind is str else input_tag(name)
