"""A workflow as a pipeline of Kubeflow: a loop over the table of steps."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from kfp import dsl

from pipelines.compiling import Compilation
from pipelines.graph import Asked, Constant, Constants, Graph, Item, Output, Source, Step
from pipelines.interface import component_of
from pipelines.kubeflow.pods import configure
from pipelines.pods import pod_of, telling


def pipeline_of(compilation: Compilation) -> dsl.base_component.BaseComponent:
    """The pipeline of a graph, which its settings are the parameters of."""
    graph, settings, constants = compilation.graph, compilation.settings, compilation.constants

    def workflow(*values: Any) -> None:
        asked = {setting.name: value for setting, value in zip(settings, values, strict=True)}
        tasks = _Tasks(graph, asked, constants)

        def add(step: Step, item: Any = None) -> None:
            task = component_of(step.name)(**tasks.inputs(step, item))
            needed = [tasks.of(name) for name in step.after]
            task.after(*needed)
            pod = telling(pod_of(step, compilation), compilation.profile)
            configure(task, pod, tasks.output)
            tasks.done[step.name] = task

        for condition, steps in groupby(graph.steps, key=lambda step: step.when):
            branch: Any = contextlib.nullcontext()
            if condition is not None:
                branch = dsl.If(tasks.output(condition.source) == condition.value, condition.name)
            with branch:
                for step in steps:
                    if step.each is None:
                        add(step)
                        continue
                    items = tasks.output(step.each)
                    with dsl.ParallelFor(items, step.each.name, constants.parallel) as item:
                        add(step, item)

    # kfp reads a pipeline's parameters off the signature and the docstring of its function.
    workflow.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                setting.name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=setting.kind,
                **({} if setting.default is None else {"default": setting.default}),
            )
            for setting in settings
        ]
    )
    described = [f"    {setting.name}: {setting.description}" for setting in settings]
    workflow.__doc__ = "\n".join([graph.description, "", "Args:", *described])
    return dsl.pipeline(name=graph.name)(workflow)


class _Tasks:
    """The tasks so far, and the values that sources stand for."""

    def __init__(self, graph: Graph, asked: Mapping[str, Any], constants: Constants) -> None:
        self.done: dict[str, dsl.PipelineTask] = {}
        self._graph, self._asked, self._constants = graph, asked, constants

    def of(self, step: str) -> dsl.PipelineTask:
        return self.done[step]

    def output(self, source: Output) -> Any:
        return self.done[source.step].outputs[source.name]

    def inputs(self, step: Step, item: Any) -> dict[str, Any]:
        return {name: self._value(source, item) for name, source in step.inputs.items()}

    def _value(self, source: Source, item: Any) -> Any:
        match source:
            case Asked(name):
                return self._asked[name]
            case Constant():
                return self._constants.value(source)
            case Output():
                found = self.output(source)
                return dsl.Collected(found) if self._graph.is_collected(source) else found
            case Item():
                return item
