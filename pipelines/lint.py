"""Shapes that a compiler lets through and Kubeflow's launcher or driver does not support.

What the reader refuses already (loops over artifacts, nested loops, lists in placeholders, unknown
placeholders, placeholders in a command's first word) is not repeated here.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.ir import Component, Container, Dag, Pipeline, Task
from pipelines.placeholders import EXECUTOR_INPUT, Placeholder
from quantlib.errors import Problem

_RESERVED_PARAMETERS = frozenset({"Output"})
_HOUR = 3600.0


def launcher_problems(pipeline: Pipeline, origin: str) -> list[Problem]:
    """Everything in a pipeline that runs on one machine and would not in Kubeflow."""
    problems: list[Problem] = []
    for name, component in {**pipeline.components, "root": pipeline.root}.items():
        where = f"{origin}: {name}"
        if isinstance(component.implementation, Container):
            problems += _container_problems(component, component.implementation, where)
        else:
            problems += _dag_problems(component.implementation, pipeline, where)
    return problems


def _container_problems(
    component: Component, container: Container, where: str
) -> Iterator[Problem]:
    for name in _RESERVED_PARAMETERS & component.inputs.parameters.keys():
        yield Problem(where, f"a parameter is called {name}", "Kubeflow refuses this name")
    parts = [part for template in container.argv for part in template]
    for part in parts:
        if isinstance(part, Placeholder) and part.field == "output_file":
            yield Problem(
                where,
                f"its argv names the output file of {part.name}",
                "the launcher does not substitute it: take it from the executor input, {{$}}",
            )
    lists = [name for name, spec in component.inputs.artifacts.items() if spec.is_list]
    if lists and EXECUTOR_INPUT not in parts:
        yield Problem(where, f"takes the list {lists[0]} without the executor input, {{{{$}}}}")
    if component.outputs.artifacts and EXECUTOR_INPUT not in parts:
        yield Problem(
            where,
            "has output artifacts without the executor input, {{$}}",
            "their metadata would be lost",
        )


def _dag_problems(dag: Dag, pipeline: Pipeline, where: str) -> Iterator[Problem]:
    for task in dag.tasks.values():
        yield from _task_problems(task, pipeline, f"{where}.{task.name}")


def _task_problems(task: Task, pipeline: Pipeline, where: str) -> Iterator[Problem]:
    implementation = pipeline.components[task.component].implementation
    if task.loop and not isinstance(task.loop.items, str) and not task.loop.items:
        yield Problem(where, "loops over an empty list", "Kubeflow does not end such a loop")
    if task.loop and any(isinstance(item, (dict, list)) for item in task.loop.items):
        yield Problem(where, "loops over mappings or lists", "loop over strings")
    retry = task.retry
    if retry.count and isinstance(implementation, Container):
        if not retry.limit:
            yield Problem(where, "retries without a longest duration", "give backoff_max_duration")
        elif retry.limit <= _HOUR:
            yield Problem(
                where,
                f"is not retried when it fails after {retry.limit:.0f} s: the longest duration "
                "counts from the start of the first attempt",
                "give a longer backoff_max_duration",
            )
