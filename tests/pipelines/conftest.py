"""Toy pipelines of container components whose steps are a few lines of Python.

The annotations of components are read by kfp, which does not resolve them from strings: no
``from __future__ import annotations`` here.
"""

import io
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler, dsl
from rich.console import Console

from pipelines.local import RunResult, run_pipeline
from pipelines.process import ProcessRunner

PRELUDE = """
import json, os, pathlib, sys, time
call = json.loads(sys.argv[-1])
inputs = call["inputs"].get("parameterValues", {}) if "inputs" in call else {}
files = {n: e["outputFile"] for n, e in call["outputs"].get("parameters", {}).items()}
def artifact(group, name, index=0):
    uri = call[group]["artifacts"][name]["artifacts"][index]["uri"]
    return pathlib.Path(uri.removeprefix("file://"))
def write(name, value):
    text = value if isinstance(value, str) else json.dumps(value)
    pathlib.Path(files[name]).write_text(text)
"""


def python_step(source: str, image: str = "toy") -> dsl.ContainerSpec:
    """A container that runs Python source, with the executor input as its argument."""
    return dsl.ContainerSpec(
        image=image,
        command=["python", "-S", "-c", PRELUDE + textwrap.dedent(source)],
        args=["{{$}}"],
    )


@pytest.fixture(scope="session")
def step() -> Callable[[str], dsl.ContainerSpec]:
    return python_step


@pytest.fixture(scope="session")
def alone() -> Callable[[Any], Any]:
    """Makes a pipeline of one component without inputs."""

    def pipeline_of(component: Any) -> Any:
        @dsl.pipeline(name="toy")
        def toy() -> None:
            component()

        return toy

    return pipeline_of


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[[Any], Path]:
    """Compiles a pipeline to a file."""

    def compile_it(pipeline: Any) -> Path:
        path = tmp_path / f"{pipeline.name}.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        return path

    return compile_it


@pytest.fixture
def run(tmp_path: Path, compiled: Callable[[Any], Path]) -> Callable[..., RunResult]:
    """Compiles and runs a pipeline; ``run.output`` holds what was printed last."""

    def run_it(pipeline: Any, parallel: int = 4, **parameters: Any) -> RunResult:
        output = io.StringIO()
        result = run_pipeline(
            compiled(pipeline),
            parameters,
            tmp_path / "run",
            ProcessRunner(grace=2.0),
            parallel,
            Console(file=output, width=200),
            retries=5,
        )
        run_it.output = output.getvalue()  # type: ignore[attr-defined]  # a function with an attribute
        return result

    return run_it


@pytest.fixture(scope="module")
def fan_out(step: Callable[[str], dsl.ContainerSpec]) -> Any:
    """Split -> work for each part, which also takes an output of split -> join."""

    @dsl.container_component
    def split(
        count: int, parts: dsl.OutputPath(list[str]), prefix: dsl.OutputPath(str)
    ) -> dsl.ContainerSpec:
        return step(
            "write('parts', [f'{i}:{i + 1}' for i in range(inputs['count'])]); write('prefix', '<')"
        )

    @dsl.container_component
    def work(
        part: str,
        prefix: str,
        piece: dsl.Output[dsl.Artifact],
        size: dsl.OutputPath(int),
        threads: dsl.OutputPath(str),
    ) -> dsl.ContainerSpec:
        return step(
            """
            artifact("outputs", "piece").write_text(inputs["prefix"] + inputs["part"])
            write("size", str(len(inputs["part"])))
            write("threads", os.environ["OMP_NUM_THREADS"])
            """
        )

    @dsl.container_component
    def join(
        pieces: dsl.Input[list[dsl.Artifact]],
        sizes: list[int],
        whole: dsl.OutputPath(list[str]),
        total: dsl.OutputPath(int),
        threads: dsl.OutputPath(str),
    ) -> dsl.ContainerSpec:
        return step(
            """
            count = len(call["inputs"]["artifacts"]["pieces"]["artifacts"])
            pieces = [artifact("inputs", "pieces", i).read_text() for i in range(count)]
            write("whole", pieces)
            write("total", sum(inputs["sizes"]))
            write("threads", os.environ["OMP_NUM_THREADS"])
            """
        )

    @dsl.pipeline(name="toy")
    def toy(count: int) -> None:
        parts = split(count=count)
        with dsl.ParallelFor(parts.outputs["parts"]) as part:
            # kfp.local passes the loop's item in place of the upstream output here
            pieces = work(part=part, prefix=parts.outputs["prefix"])
        join(
            pieces=dsl.Collected(pieces.outputs["piece"]),
            sizes=dsl.Collected(pieces.outputs["size"]),
        )

    return toy
