"""The executor input, filled in as Argo does it, and read as a step does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.argo.executor import argv_of
from pipelines.graph import WATCH
from pipelines.interface import interface_of
from quantlib.steps.contract import StepCall

Document = dict[str, Any]
VALUES: dict[type, Any] = {
    str: 'a: "b"\n# it\'s \\ here\n\ttab: {x: {y: "é }} <&>"}}\n',
    int: -3,
    list: ["0:8", 'b"', "<&>"],
    dict: {"mine": 'model: "x"\n', "calibration": {"num_samples": {"most": 512}}},
}
STEPS = [step.name for step in WATCH.steps]


def fill(text: str, parameters: dict[str, str]) -> str:
    """Replaces tags as Argo does: by the text of a parameter, or by that text as JSON."""
    tag = re.compile(
        r"\{\{(?:=toJson\(inputs\.parameters\['(\w+)'\]\)|inputs\.parameters\.(\w+))\}\}"
    )

    def value(match: re.Match[str]) -> str:
        quoted, plain = match.groups()
        return json.dumps(parameters[quoted]) if quoted else parameters[plain]

    return tag.sub(value, text)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_reads_the_values_that_a_run_was_given(step: str) -> None:
    kinds = interface_of(step).parameters
    values = {name: VALUES[kind] for name, kind in kinds.items()}
    texts = {n: each if isinstance(each, str) else json.dumps(each) for n, each in values.items()}
    *command, filled = (fill(part, texts) for part in argv_of(step))
    assert command == ["python", "-m", "quantlib.steps", step, "--executor-input"]
    assert StepCall.parse(filled).parameters == values


@pytest.mark.parametrize("step", STEPS)
def test_a_step_reads_and_writes_where_argo_does(
    step: str, template_of: Callable[[str, str], Document]
) -> None:
    document = template_of("watch", "gpu")
    (template,) = (each for each in document["spec"]["templates"] if each["name"] == step)
    container = template["container"]
    assert [*container["command"], *container["args"]] == argv_of(step)
    names = {each["name"] for each in template["inputs"]["parameters"]}
    call = StepCall.parse(fill(container["args"][-1], dict.fromkeys(names, "0")))
    read = {
        each["name"]: f"file://{each['path']}" for each in template["inputs"].get("artifacts", [])
    }
    assert {name: artifact["uri"] for name, (artifact,) in call.inputs.items()} == read
    outputs = template.get("outputs", {})
    written = {each["name"]: each for each in outputs.get("artifacts", [])}
    assert {name: each["uri"] for name, each in call.outputs.items()} == {
        name: f"file://{each['path']}" for name, each in written.items()
    }
    assert all(each["archive"] == {"none": {}} for each in written.values())
    assert {name for name, each in written.items() if each.get("optional")} == (
        {"metrics"} if step == "validate" else set()
    )
    assert call.output_parameters == {
        each["name"]: Path(each["valueFrom"]["path"]) for each in outputs.get("parameters", [])
    }
    files = [*call.output_parameters.values(), call.output_file]
    assert all(file.parent == Path("/outputs") for file in files)
    if step == "validate":
        assert written["report"]["path"].endswith(".html"), "Argo's UI shows it as a page"
