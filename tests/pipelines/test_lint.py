"""Pipelines that run here and would not in Kubeflow.

kfp reads the annotations, so they are no strings here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kfp import dsl

from pipelines.lint import launcher_problems
from pipelines.reader import load_pipeline

Compile = Callable[[Any], Path]


def problems(compiled: Compile, pipeline: Any) -> str:
    return "\n".join(map(str, launcher_problems(load_pipeline(compiled(pipeline)), "toy")))


@dsl.container_component
def work(item: str) -> dsl.ContainerSpec:
    return dsl.ContainerSpec(image="toy", command=["true"], args=["{{$}}"])


def test_the_shape_that_the_launcher_supports(compiled: Compile) -> None:
    @dsl.pipeline(name="toy")
    def toy(items: list[str]) -> None:
        with dsl.ParallelFor(items) as item:
            work(item=item).set_retry(3, "30s", 2.0, "86400s")

    assert problems(compiled, toy) == ""


def test_retries_that_would_never_happen(compiled: Compile) -> None:
    @dsl.pipeline(name="toy")
    def toy() -> None:
        work(item="a").set_retry(3)

    assert "is not retried when it fails after 3600 s" in problems(compiled, toy)


def test_output_files_by_placeholder(compiled: Compile) -> None:
    @dsl.container_component
    def writes(value: dsl.OutputPath(str)) -> dsl.ContainerSpec:
        return dsl.ContainerSpec(image="toy", command=["true"], args=[value])

    @dsl.pipeline(name="toy")
    def toy() -> None:
        writes()

    assert "the launcher does not substitute it" in problems(compiled, toy)


def test_artifacts_without_the_executor_input(compiled: Compile) -> None:
    @dsl.container_component
    def makes(thing: dsl.Output[dsl.Artifact]) -> dsl.ContainerSpec:
        return dsl.ContainerSpec(image="toy", command=["true"], args=[thing.path])

    @dsl.pipeline(name="toy")
    def toy() -> None:
        makes()

    assert "has output artifacts without the executor input" in problems(compiled, toy)


def test_loops_that_do_not_end(compiled: Compile) -> None:
    @dsl.pipeline(name="toy")
    def toy() -> None:
        with dsl.ParallelFor([{"a": "1"}]) as item:
            work(item=item.a)

    try:
        found = problems(compiled, toy)
    except Exception as error:  # the reader refuses what is behind a mapping's item
        found = str(error)
    assert "loops over mappings" in found or "not supported" in found
