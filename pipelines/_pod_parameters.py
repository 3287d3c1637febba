"""Values that a task passes to the resources of its container, not to the container."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from pipelines.ir import Component, Container, Dag, Pipeline, Resources, Task
from pipelines.placeholders import Placeholder
from quantlib.errors import InvalidInputError


@dataclass(frozen=True)
class SameInput:
    """The value of another input of the same task; stands in tasks until they are settled."""

    name: str


def with_pod_parameters(pipeline: Pipeline, origin: str) -> Pipeline:
    """Sets what only a container's resources name apart from what the container takes."""

    def settle(component: Component) -> Component:
        if not isinstance(component.implementation, Dag):
            return component
        tasks = {
            name: _settle_inputs(task, pipeline.components.get(task.component), origin)
            for name, task in component.implementation.tasks.items()
        }
        return dataclasses.replace(
            component, implementation=dataclasses.replace(component.implementation, tasks=tasks)
        )

    components = {name: settle(component) for name, component in pipeline.components.items()}
    return Pipeline(pipeline.name, components, settle(pipeline.root))


def _settle_inputs(task: Task, component: Component | None, origin: str) -> Task:
    where = f"{origin}: task {task.name}"
    parameters = dict(task.parameters)
    for name, source in task.parameters.items():
        if isinstance(source, SameInput):
            found = task.parameters.get(source.name)
            if found is None or isinstance(found, SameInput):
                raise InvalidInputError.one(where, f"input {name} names unknown {source.name}")
            parameters[name] = found
    if component is None or not isinstance(component.implementation, Container):
        return dataclasses.replace(task, parameters=parameters)
    named = _named_by(component.implementation.resources)
    if unknown := named - parameters.keys():
        raise InvalidInputError.one(where, f"its resources name unknown {', '.join(unknown)}")
    # kfp passes the same values once more by names such as memory_limit, which nobody reads.
    extra = named | {
        name for name, source in task.parameters.items() if isinstance(source, SameInput)
    }
    own = {
        name: source
        for name, source in parameters.items()
        if name in component.inputs.parameters or name not in extra
    }
    pod = {name: parameters[name] for name in sorted(named)}
    return dataclasses.replace(task, parameters=own, pod_parameters=pod)


def _named_by(resources: Resources) -> set[str]:
    return {
        part.name
        for field in dataclasses.fields(resources)
        for part in getattr(resources, field.name)
        if isinstance(part, Placeholder)
    }
