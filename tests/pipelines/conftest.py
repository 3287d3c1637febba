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
import yaml
from kfp import compiler, dsl
from rich.console import Console

from pipelines.argo import workflow_template, write_workflow_template
from pipelines.compiling import CompileOptions, compile_to
from pipelines.local import RunResult, run_pipeline
from pipelines.process import ProcessRunner
from pipelines.reader import load_pipeline, read_pipeline

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


@pytest.fixture(scope="session")
def quantization(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The quantization pipeline for a cluster, as Argo takes it, by way of a file."""

    def translate_it(cluster: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("argo")
        compile_to(folder / "pipeline.yaml", CompileOptions(cluster))
        file = folder / "argo" / "workflow.yaml"
        write_workflow_template(load_pipeline(folder / "pipeline.yaml"), file, namespace="default")
        return yaml.safe_load(file.read_text(encoding="utf-8"))

    return translate_it


@pytest.fixture
def translate(compiled: Callable[[Any], Path]) -> Callable[..., dict[str, Any]]:
    """Compiles a pipeline and translates it to Argo; ``change`` may edit the compiled one."""

    def translate_it(
        pipeline: Any, change: Callable[[dict[str, Any]], None] = lambda _: None
    ) -> dict[str, Any]:
        documents = list(yaml.safe_load_all(compiled(pipeline).read_text(encoding="utf-8")))
        change(documents[0])
        return workflow_template(read_pipeline(yaml.safe_dump_all(documents)))

    return translate_it
