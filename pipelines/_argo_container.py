"""A task that runs a container, as an Argo template.

The step is started as Kubeflow starts it, with an executor input. Argo fills in the parameters'
values; the paths of artifacts and outputs are known beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pipelines._argo_pod import OUTPUTS, container_fields, pod_fields, retry_fields
from pipelines._argo_values import given, input_tag, json_tag, plain
from pipelines.ir import ArtifactSpec, Component, Container, Task
from pipelines.placeholders import Placeholder, Template
from pipelines.values import Artifact, to_text
from quantlib.errors import InvalidInputError

INPUTS = "/inputs"
LOOP_ITEM = "loop-item"
"""The extra input of a step in a loop whose artifacts are collected: it names its files."""

_SUFFIXES = {"system.HTML": ".html"}  # Argo's UI shows a page by the end of its name
_NO_FILE = ("system.Metrics", "system.ClassificationMetrics")  # metadata only


def container_template(
    task: Task, component: Component, collected: Mapping[str, str]
) -> dict[str, Any]:
    """The template of one task.

    Args:
        task: A task that runs a container.
        component: What it runs.
        collected: Where the output artifacts go that a later task takes from all iterations of
            the loop: folders in the artifact repository, by the name of the output.

    Raises:
        InvalidInputError: It asks for something that has no counterpart in Argo.
    """
    where = f"task {task.name}"
    container = component.implementation
    assert isinstance(container, Container)
    argv = [_argument(part, task, component, where) for part in container.argv]
    return {
        "name": task.name,
        **pod_fields(container, where),
        **retry_fields(task.retry, where),
        "inputs": given(
            parameters=_input_parameters(task, component, bool(collected), where),
            artifacts=[{"name": name, "path": _input_path(name)} for name in task.artifacts],
        ),
        "container": {
            **container_fields(container, where),
            "command": argv[:1],
            "args": argv[1:],
        },
        "outputs": given(
            parameters=[
                {"name": name, "valueFrom": {"path": _parameter_file(name)}}
                for name in component.outputs.parameters
            ],
            artifacts=[
                _output_artifact(name, spec, collected.get(name), where)
                for name, spec in component.outputs.artifacts.items()
            ],
        ),
    }


def _values(task: Task, component: Component) -> Iterable[str]:
    """Names of the component's parameters that have a value here."""
    for name, spec in component.inputs.parameters.items():
        if name in task.parameters or spec.default is not None:
            yield name


def _input_parameters(
    task: Task, component: Component, in_loop: bool, where: str
) -> list[dict[str, str]]:
    parameters: list[dict[str, str]] = []
    for name in _values(task, component):
        parameters.append({"name": name})
        if name not in task.parameters:
            default = to_text(component.inputs.parameters[name].default)
            parameters[-1]["value"] = plain(default, where)
    parameters += [{"name": name} for name in task.pod_parameters if name not in task.parameters]
    if in_loop:
        parameters.append({"name": LOOP_ITEM})
    return parameters


def _output_artifact(
    name: str, spec: ArtifactSpec, folder: str | None, where: str
) -> dict[str, Any]:
    if spec.is_list:
        raise InvalidInputError.one(where, f"its output {name} is a list of artifacts")
    artifact: dict[str, Any] = {
        "name": name,
        "path": _output_path(name, spec),
        "archive": {"none": {}},  # a few KB of JSON, which a person may want to read
    }
    if spec.schema_title in _NO_FILE:
        artifact["optional"] = True
    if folder:
        artifact["s3"] = {"key": f"{folder}/{input_tag(LOOP_ITEM)}"}
    return artifact


def _argument(template: Template, task: Task, component: Component, where: str) -> str:
    return "".join(
        plain(part, where) if isinstance(part, str) else _fill(part, task, component)
        for part in template
    )


def _fill(placeholder: Placeholder, task: Task, component: Component) -> str:
    name = placeholder.name
    match placeholder.group:
        case "":
            return _executor_input(task, component)
        case "inputs.parameters":
            return input_tag(name)
        case "outputs.parameters":
            return _parameter_file(name)
        case "inputs.artifacts":
            path = _input_path(name)
        case _:
            path = _output_path(name, component.outputs.artifacts[name])
    return path if placeholder.field == "path" else f"file://{path}"


def _executor_input(task: Task, component: Component) -> str:
    def artifacts(specs: Mapping[str, ArtifactSpec], paths: Mapping[str, str]) -> dict[str, Any]:
        return {
            name: {
                "artifacts": [
                    Artifact(
                        name,
                        specs[name].schema_title,
                        specs[name].schema_version,
                        f"file://{path}",
                    ).to_json()
                ]
            }
            for name, path in paths.items()
        }

    specs = component.inputs.parameters
    values = ",".join(
        f"{json.dumps(name)}:{json_tag(name, specs[name])}" for name in _values(task, component)
    )
    inputs = artifacts(
        component.inputs.artifacts, {name: _input_path(name) for name in task.artifacts}
    )
    outputs = {
        "parameters": {
            name: {"outputFile": _parameter_file(name)} for name in component.outputs.parameters
        },
        "artifacts": artifacts(
            component.outputs.artifacts,
            {name: _output_path(name, spec) for name, spec in component.outputs.artifacts.items()},
        ),
        "outputFile": f"{OUTPUTS}/executor_output.json",
    }
    # Only the values are tags, and JSON cannot have {{ anywhere else.
    return (
        f'{{"inputs":{{"parameterValues":{{{values}}},"artifacts":{_compact(inputs)}}},'
        f'"outputs":{_compact(outputs)}}}'
    )


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _input_path(name: str) -> str:
    return f"{INPUTS}/{name}"


def _output_path(name: str, spec: ArtifactSpec) -> str:
    return f"{OUTPUTS}/{name}{_SUFFIXES.get(spec.schema_title, '')}"


def _parameter_file(name: str) -> str:
    return f"{OUTPUTS}/{name}"
