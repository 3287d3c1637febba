"""What a step is started with, and what is made of what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from toys import Toy

from pipelines.graph import Asked, Graph, Output, Step
from pipelines.interface import Interface, interface_of
from pipelines.local.calls import Artifact, Call, Values
from pipelines.local.run import RunResult
from quantlib.errors import StepError
from quantlib.steps.contract import StepCall

Run = Callable[..., RunResult]


def call_of(folder: Path, **parameters: object) -> Call:
    receipts = (
        Artifact(folder / "a", "system.Artifact"),
        Artifact(folder / "b", "system.Artifact"),
    )
    inputs = Values(parameters, {"quantized": receipts})
    return Call("merge", "merge", "image", {}, 2, folder, inputs, interface_of("merge"))


def test_a_step_reads_what_it_is_started_with(tmp_path: Path) -> None:
    text = 'say "hi" {{$}}\n'
    argv = call_of(tmp_path, recipe=text, number=3, mapping={"k": [1, None]}).argv
    assert argv[:-1] == ("python", "-m", "quantlib.steps", "merge", "--executor-input")
    call = StepCall.parse(argv[-1])
    assert call.parameters == {"recipe": text, "number": 3, "mapping": {"k": [1, None]}}
    assert [entry["uri"] for entry in call.inputs["quantized"]] == [
        f"file://{tmp_path}/{name}" for name in "ab"
    ]
    assert set(call.outputs) == {"checkpoint", "merge_summary"}
    assert call.outputs["merge_summary"]["type"]["schemaTitle"] == "system.Markdown"


def test_an_argument_that_the_system_would_refuse(tmp_path: Path) -> None:
    assert call_of(tmp_path, recipe="x" * 129_000).argv
    with pytest.raises(StepError, match="longer than the system's 131072"):
        _ = call_of(tmp_path, recipe="x" * 131_072).argv


def test_artifacts_pass_with_their_metadata(run: Run) -> None:
    steps = (Step("make", {}), Step("read", {"model": Output("make", "model")}))
    toy = Toy(
        Graph("toy", "", (), steps),
        {
            "make": "artifact('outputs', 'model').write_text('weights'); metadata('model', n=3)",
            "read": """
                (entry,) = call["inputs"]["artifacts"]["model"]["artifacts"]
                write("seen", entry | {"content": artifact("inputs", "model").read_text()})
            """,
        },
        {"read": {"seen": dict}},
        {"make": {"model": "system.Model"}},
    )
    result = run(toy)
    path = result.outputs["make"].artifacts["model"][0].path
    assert result.outputs["read"].parameters["seen"] == {
        "name": "model",
        "type": {"schemaTitle": "system.Model", "schemaVersion": "0.0.1"},
        "uri": f"file://{path}",
        "metadata": {"n": 3},
        "content": "weights",
    }
    written = json.loads((path.parents[2] / "run.json").read_text())
    assert written["state"] == "succeeded"
    assert written["tasks"]["make"]["outputs"]["artifacts"]["model"] == [
        {"path": str(path), "type": "system.Model", "metadata": {"n": 3}}
    ]
    assert written["tasks"]["read"]["attempts"] == 1
    assert written["tasks"]["read"]["seconds"] > 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pass", "did not write its output number"),
        ("os._exit(0)", "did not write its output /"),
        ("write('number', 1); output['artifacts'] = 3", "wrote a damaged executor output"),
    ],
)
def test_a_step_without_its_outputs_has_failed(run: Run, source: str, message: str) -> None:
    toy = Toy(
        Graph("toy", "", (), (Step("work", {"given": Asked("given")}),)),
        {"work": source},
        {"work": {"number": int}},
    )
    result = run(toy, given="x")
    assert result.exit_code == 1
    assert result.failure is not None
    assert message in result.failure.error


def test_outputs_of_an_earlier_attempt_are_gone(tmp_path: Path) -> None:
    call = Call(
        "plan", "plan", "image", {}, 1, tmp_path, Values(), Interface({}, (), {"n": int}, {})
    )
    call.prepare()
    (tmp_path / "parameters" / "n").write_text("1")
    (tmp_path / "executor_output.json").write_text('{"parameterValues": {"n": 1}}')
    assert call.collect().parameters == {"n": 1}
    call.prepare()
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
