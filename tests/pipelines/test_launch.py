"""What a step is started with, in toy pipelines run as processes.

The annotations of components are read by kfp, which does not resolve them from strings: no
``from __future__ import annotations`` here.
"""

import json
from collections.abc import Callable

from kfp import dsl

from pipelines.local import RunResult

Run = Callable[..., RunResult]
Step = Callable[[str], dsl.ContainerSpec]


def test_parameters_of_every_type_arrive_as_on_the_cluster(run: Run, step: Step) -> None:
    @dsl.container_component
    def make(
        text: str,
        whole: int,
        real: float,
        truth: bool,
        items: list,
        mapping: dict,
        given: dsl.OutputPath(dict),
        number: dsl.OutputPath(int),
        names: dsl.OutputPath(list),
        left_out: str = "the default",
    ) -> dsl.ContainerSpec:
        return step("write('given', inputs); write('number', '7'); write('names', ['a', 'b'])")

    @dsl.container_component
    def read(number: int, names: list, argv: dsl.OutputPath(list)) -> dsl.ContainerSpec:
        source = "import json, pathlib, sys\npathlib.Path(sys.argv[1]).write_text"
        return dsl.ContainerSpec(
            image="toy",
            command=["python", "-S", "-c", source + "(json.dumps(sys.argv[2:]))"],
            args=[argv, f"--number={number}", names],
        )

    @dsl.pipeline(name="toy")
    def toy(whole: int, text: str, real: float = 0.5) -> None:
        made = make(text=text, whole=whole, real=real, truth=True, items=[1, "b"], mapping={"k": 2})
        read(number=made.outputs["number"], names=made.outputs["names"])

    text = 'say "hi" {{$}}\n'
    result = run(toy, whole=3, text=text)
    assert result.exit_code == 0
    assert result.outputs["make"].parameters == {
        "given": {
            "text": text,
            "whole": 3,
            "real": 0.5,
            "truth": True,
            "items": [1, "b"],
            "mapping": {"k": 2},
            "left_out": "the default",
        },
        "number": 7,
        "names": ["a", "b"],
    }
    assert result.outputs["read"].parameters["argv"] == ["--number=7", '["a","b"]']


def test_artifacts_pass_with_their_metadata(run: Run, step: Step) -> None:
    @dsl.container_component
    def make(model: dsl.Output[dsl.Model]) -> dsl.ContainerSpec:
        return step(
            """
            artifact("outputs", "model").write_text("weights")
            entry = call["outputs"]["artifacts"]["model"]["artifacts"][0] | {"metadata": {"n": 3}}
            output = {"artifacts": {"model": {"artifacts": [entry]}}}
            pathlib.Path(call["outputs"]["outputFile"]).write_text(json.dumps(output))
            """
        )

    @dsl.container_component
    def read(model: dsl.Input[dsl.Model], seen: dsl.OutputPath(dict)) -> dsl.ContainerSpec:
        return step(
            """
            (entry,) = call["inputs"]["artifacts"]["model"]["artifacts"]
            write("seen", entry | {"content": artifact("inputs", "model").read_text()})
            """
        )

    @dsl.pipeline(name="toy")
    def toy() -> None:
        read(model=make().outputs["model"])

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


def test_an_argument_that_the_system_would_refuse(run: Run, step: Step) -> None:
    @dsl.container_component
    def work(text: str) -> dsl.ContainerSpec:
        return step("")

    @dsl.pipeline(name="toy")
    def toy(text: str) -> None:
        work(text=text)

    assert run(toy, text="x" * 130_000).exit_code == 0
    result = run(toy, text="x" * 131_072)
    assert result.failure is not None
    assert "longer than the system's 131072" in result.failure.error
