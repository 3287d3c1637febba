"""Whether the parts of a compiled pipeline fit together."""

from __future__ import annotations

import graphlib
from collections.abc import Mapping
from typing import Any

from pipelines.expressions import parameter_names
from pipelines.ir import (
    Component,
    Container,
    Dag,
    DagInput,
    Definitions,
    Pipeline,
    Task,
    TaskOutput,
)
from pipelines.placeholders import Placeholder
from quantlib.errors import InvalidInputError


def check_placeholders(
    container: Container, inputs: Definitions, outputs: Definitions, where: str
) -> None:
    """Checks that the argv of a container names inputs and outputs that it has.

    Raises:
        InvalidInputError: It names an unknown one, or one that the launcher does not always
            substitute: a list of artifacts, or an optional input without a default.
    """
    known: dict[str, Mapping[str, Any]] = {
        "inputs.parameters": {
            name: spec
            for name, spec in inputs.parameters.items()
            if not spec.optional or spec.default is not None
        },
        "inputs.artifacts": {
            name: spec
            for name, spec in inputs.artifacts.items()
            if not (spec.optional or spec.is_list)
        },
        "outputs.parameters": outputs.parameters,
        "outputs.artifacts": outputs.artifacts,
    }
    for part in (part for template in container.argv for part in template):
        if isinstance(part, Placeholder) and part.group and part.name not in known[part.group]:
            raise InvalidInputError.one(
                where,
                f"its argv names {part.group}['{part.name}'], which is unknown, optional or a list",
                "take it from the executor input, {{$}}",
            )


def check_references(pipeline: Pipeline, origin: str) -> None:
    """Checks that every name in a pipeline means something, and that no tasks wait for each other.

    Raises:
        InvalidInputError: With the place of the fault, in the file called ``origin``.
    """
    for name, component in {**pipeline.components, "root": pipeline.root}.items():
        if isinstance(component.implementation, Dag):
            where = f"{origin}: {name if name == 'root' else f'components.{name}'}.dag"
            _check_dag(component, pipeline.components, where)
    if not isinstance(pipeline.root.implementation, Dag):
        raise InvalidInputError.one(f"{origin}: root", "is no DAG")
    _check_nesting(pipeline.root, pipeline.components, set(), origin)


def _check_nesting(
    component: Component,
    components: Mapping[str, Component],
    steps: set[str],
    where: str,
    loop: str = "",
) -> None:
    """Loops do not nest, and no two DAGs have a step of the same name, which its folder has."""
    dag = component.implementation
    assert isinstance(dag, Dag)
    for task in dag.tasks.values():
        inner = components[task.component]
        if loop and task.loop:
            what = f"loop {task.name} in loop {loop}: nested loops are not supported"
            raise InvalidInputError.one(where, what)
        if isinstance(inner.implementation, Dag):
            _check_nesting(inner, components, steps, where, task.name if task.loop else loop)
        elif task.name in steps:
            raise InvalidInputError.one(where, f"several DAGs have a task {task.name}")
        else:
            steps.add(task.name)


def _check_dag(component: Component, components: Mapping[str, Component], where: str) -> None:
    dag = component.implementation
    assert isinstance(dag, Dag)
    for task in dag.tasks.values():
        _check_task(task, component, components, dag, f"{where}.tasks.{task.name}")
    try:
        graphlib.TopologicalSorter(
            {name: task.dependencies for name, task in dag.tasks.items()}
        ).prepare()
    except graphlib.CycleError as error:
        raise InvalidInputError.one(where, f"tasks wait for each other: {error.args[1]}") from None
    for kind in ("parameters", "artifacts"):
        for name, sources in getattr(dag, kind).items():
            if name not in getattr(component.outputs, kind):
                raise InvalidInputError.one(f"{where}.outputs", f"{name} is no output")
            for source in sources:
                _check_output(source, kind, components, dag, f"{where}.outputs")


def _check_task(
    task: Task, parent: Component, components: Mapping[str, Component], dag: Dag, where: str
) -> None:
    component = components.get(task.component)
    if component is None:
        raise InvalidInputError.one(where, f"unknown component {task.component}")
    if unknown := set(task.dependencies) - set(dag.tasks):
        raise InvalidInputError.one(where, f"depends on unknown tasks: {', '.join(unknown)}")
    if task.retry.count and isinstance(component.implementation, Dag):
        raise InvalidInputError.one(where, "retries of a whole DAG are not supported")
    for kind in ("parameters", "artifacts"):
        specs = getattr(component.inputs, kind)
        for name, source in getattr(task, kind).items():
            if name not in specs:
                raise InvalidInputError.one(where, f"{task.component} takes no input {name}")
            if isinstance(source, TaskOutput):
                _check_output(source, kind, components, dag, where)
            elif isinstance(source, DagInput) and source.name not in getattr(parent.inputs, kind):
                raise InvalidInputError.one(where, f"the DAG has no input {source.name}")
        item = {task.loop.item_input} if task.loop else set()
        for name in specs.keys() - getattr(task, kind).keys() - item:
            if not specs[name].optional and getattr(specs[name], "default", None) is None:
                raise InvalidInputError.one(where, f"input {name} is missing")
    read = set(parameter_names(task.condition)) if task.condition else set()
    if task.loop and isinstance(task.loop.items, str):
        read.add(task.loop.items)
    if unknown := read - set(task.parameters):
        raise InvalidInputError.one(where, f"reads unknown inputs: {', '.join(unknown)}")


def _check_output(
    source: TaskOutput, kind: str, components: Mapping[str, Component], dag: Dag, where: str
) -> None:
    task = dag.tasks.get(source.task)
    if task is None:
        raise InvalidInputError.one(where, f"unknown task {source.task}")
    component = components.get(task.component)
    if component is None or source.name not in getattr(component.outputs, kind):
        raise InvalidInputError.one(where, f"{source.task} has no output {source.name}")
