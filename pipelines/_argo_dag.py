"""DAGs, loops and conditions, as Argo templates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pipelines._argo_container import LOOP_ITEM, container_template
from pipelines._argo_values import Source, condition_tag, given, input_tag, plain, source_tag
from pipelines.ir import Component, Container, Dag, DagInput, Loop, Pipeline, Task, TaskOutput
from quantlib.errors import InvalidInputError

_ITERATION = "iteration"


def dag_templates(
    pipeline: Pipeline, name: str, component: Component, item_input: str = ""
) -> Iterator[dict[str, Any]]:
    """The templates of a DAG: its own, then those of its tasks.

    Args:
        pipeline: What the DAG is part of.
        name: What to call the DAG.
        component: The DAG.
        item_input: For the body of a loop, the input that is the item of the iteration.

    Raises:
        InvalidInputError: Something in it has no counterpart in Argo; the error names the task.
    """
    dag = component.implementation
    assert isinstance(dag, Dag)
    collected = _collected(pipeline, name, dag) if item_input else {}
    outputs: dict[str, list[dict[str, Any]]] = {
        "parameters": [
            {"name": output, "valueFrom": {"parameter": source_tag(_only(sources, name), name)}}
            for output, sources in dag.parameters.items()
        ],
        # Those of a loop go to a folder instead: Argo has no list of artifacts.
        "artifacts": []
        if item_input
        else [
            {"name": output, **_artifact_source(pipeline, dag, _only(sources, name), export=True)}
            for output, sources in dag.artifacts.items()
        ],
    }
    yield {
        "name": name,
        "inputs": _names(component.inputs.parameters, component.inputs.artifacts),
        "dag": {
            "tasks": [
                _dag_task(pipeline, dag, task, item_input if task.name in collected else "")
                for task in dag.tasks.values()
            ]
        },
        "outputs": given(**outputs),
    }
    for task in dag.tasks.values():
        inner = pipeline.components[task.component]
        if isinstance(inner.implementation, Container):
            if task.loop:
                what = "loops over a container; kfp's compiler loops over DAGs"
                raise InvalidInputError.one(f"task {task.name}", what)
            yield container_template(task, inner, collected.get(task.name, {}))
        elif task.loop:
            yield _loop(pipeline, task, task.loop, inner)
            yield from dag_templates(pipeline, _body_name(task), inner, task.loop.item_input)
        else:
            yield from dag_templates(pipeline, task.name, inner)


def _loop(pipeline: Pipeline, task: Task, loop: Loop, component: Component) -> dict[str, Any]:
    """The template around the iterations of a loop, which bounds how many run at once."""
    body = component.implementation
    assert isinstance(body, Dag)
    for name, sources in body.parameters.items():
        source = _only(sources, task.name)
        producer = pipeline.components[body.tasks[source.task].component]
        kind = producer.outputs.parameters[source.name].type
        if kind != "STRING":
            raise InvalidInputError.one(
                f"task {task.name}",
                f"collects {name}, which is a {kind}; Argo gives lists of strings only",
            )
    items = (
        {"withParam": input_tag(loop.items)}
        if isinstance(loop.items, str)
        else {"withItems": [_item(item, task.name) for item in loop.items]}
    )
    return {
        "name": task.name,
        "inputs": _names(task.parameters, task.artifacts),
        **({"parallelism": loop.parallelism} if loop.parallelism else {}),
        "dag": {
            "tasks": [
                {
                    "name": _ITERATION,
                    "template": _body_name(task),
                    **items,
                    "arguments": given(
                        parameters=[
                            *({"name": name, "value": input_tag(name)} for name in task.parameters),
                            {"name": loop.item_input, "value": "{{item}}"},
                        ],
                        artifacts=[
                            {"name": name, "from": f"{{{{inputs.artifacts.{name}}}}}"}
                            for name in task.artifacts
                        ],
                    ),
                }
            ]
        },
        "outputs": given(
            parameters=[
                {
                    "name": name,
                    "valueFrom": {"parameter": source_tag(TaskOutput(_ITERATION, name), "")},
                }
                for name in body.parameters
            ]
        ),
    }


def _dag_task(pipeline: Pipeline, dag: Dag, task: Task, item_input: str) -> dict[str, Any]:
    where = f"task {task.name}"
    component = pipeline.components[task.component]
    values: dict[str, Source] = {**task.parameters, **task.pod_parameters}
    if item_input:
        values[LOOP_ITEM] = DagInput(item_input)
    if isinstance(component.implementation, Dag):
        known = {**component.inputs.parameters, **component.inputs.artifacts}
        item = {task.loop.item_input} if task.loop else set()
        for name in known.keys() - values.keys() - task.artifacts.keys() - item:
            raise InvalidInputError.one(where, f"is not given {name}", "a DAG needs all its inputs")
    entry: dict[str, Any] = {"name": task.name, "template": task.name}
    if task.dependencies:
        # What depends on a task that was skipped is skipped, as Kubeflow does it.
        entry["depends"] = " && ".join(f"{name}.Succeeded" for name in task.dependencies)
    if task.condition:
        entry["when"] = condition_tag(
            task.condition, task.parameters, component.inputs.parameters, where
        )
    entry["arguments"] = given(
        parameters=[
            {"name": name, "value": source_tag(source, where)} for name, source in values.items()
        ],
        artifacts=[
            {"name": name, **_artifact_source(pipeline, dag, source)}
            for name, source in task.artifacts.items()
        ],
    )
    return entry


def _artifact_source(
    pipeline: Pipeline, dag: Dag, source: DagInput | TaskOutput, export: bool = False
) -> dict[str, Any]:
    if isinstance(source, DagInput):
        return {"from": f"{{{{inputs.artifacts.{source.name}}}}}"}
    producer = dag.tasks[source.task]
    if producer.loop is None:
        return {"from": f"{{{{tasks.{source.task}.outputs.artifacts.{source.name}}}}}"}
    if export:
        what = f"its artifacts {source.name} leave the DAG that it is in"
        raise InvalidInputError.one(f"task {source.task}", f"{what}, which Argo has no form for")
    body = pipeline.components[producer.component].implementation
    assert isinstance(body, Dag)
    inner = _only(body.artifacts[source.name], source.task)
    return {"s3": {"key": _folder(inner)}, "archive": {"none": {}}}


def _collected(pipeline: Pipeline, name: str, body: Dag) -> dict[str, dict[str, str]]:
    """Where artifacts go that leave the body of a loop, by task and output."""
    folders: dict[str, dict[str, str]] = {}
    for output, sources in body.artifacts.items():
        source = _only(sources, name)
        producer = pipeline.components[body.tasks[source.task].component]
        if not isinstance(producer.implementation, Container):
            what = f"collects {output} from a DAG inside the loop, which is not supported"
            raise InvalidInputError.one(f"task {name}", what)
        folders.setdefault(source.task, {})[source.name] = _folder(source)
    return folders


def _folder(source: TaskOutput) -> str:
    """Where in the artifact repository all iterations put one output."""
    # Names of workflows come again, and files of the earlier one would be taken for this one's.
    return f"{{{{workflow.name}}}}/{{{{workflow.uid}}}}/{source.task}/{source.name}"


def _only(sources: tuple[TaskOutput, ...], where: str) -> TaskOutput:
    if len(sources) != 1:
        tasks = ", ".join(source.task for source in sources)
        what = f"has an output of whichever ran of {tasks} (dsl.OneOf), which is not supported"
        raise InvalidInputError.one(f"task {where}", what)
    return sources[0]


def _item(item: Any, where: str) -> Any:
    if isinstance(item, (dict, list)):
        raise InvalidInputError.one(
            f"task {where}", f"loops over {item!r}, which is no plain value"
        )
    return plain(item, where) if isinstance(item, str) else item


def _names(parameters: Iterable[str], artifacts: Iterable[str]) -> dict[str, list[dict[str, str]]]:
    return given(
        parameters=[{"name": name} for name in parameters],
        artifacts=[{"name": name} for name in artifacts],
    )


def _body_name(task: Task) -> str:
    return f"{task.name}-{_ITERATION}"
