"""A workflow as a ``WorkflowTemplate`` of Argo: a loop over the table of steps.

Every step is a template that runs a container, and a task of one DAG. A step that runs once for
each of something has a DAG of its own between the two. docs/argo.md says how the result is used,
docs/decisions/0003-argo.md why it is made this way.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hera.workflows import (
    DAG,
    Artifact,
    Container,
    NoneArchiveStrategy,
    Parameter,
    S3Artifact,
    Task,
    WorkflowTemplate,
    models,
)

from pipelines.argo.executor import METRICS, argv_of, input_path, input_tag, output_path
from pipelines.argo.pods import container_of
from pipelines.compiling import Compilation
from pipelines.graph import Asked, Condition, Constant, Item, Output, Setting, Source, Step
from pipelines.interface import Interface, interface_of
from pipelines.pods import Pod, pod_of, telling

SERVICE_ACCOUNT = "quantlib-runner"
PARALLELISM = 32
"""How many pods of one run there may be at once."""

KEEP_SECONDS = 7 * 24 * 3600
_ENTRYPOINT = "pipeline"
_EXIT_HANDLER = "report-outcome"
_REPORT = ("python", "-m", "quantlib.telemetry.argo")


def workflow_template(compilation: Compilation, *, namespace: str = "") -> WorkflowTemplate:
    """The ``WorkflowTemplate`` of a compilation that holds no tags of Argo's."""
    steps = [_Templates(step, compilation) for step in compilation.graph.steps]
    root = DAG(
        name=_ENTRYPOINT,
        inputs=[Parameter(name=setting.name) for setting in compilation.settings],
        tasks=[each.task() for each in steps],
    )
    first = compilation.images.of(compilation.graph.steps[0].name)  # which the run has pulled
    report = container_of(
        _EXIT_HANDLER,
        telling(Pod(first, compilation.profile.user), compilation.profile),
        [*_REPORT, "{{workflow.status}}", "{{workflow.failures}}", "{{workflow.parameters.model}}"],
    )
    loops = [each.loop(compilation.constants.parallel) for each in steps if each.step.each]
    return WorkflowTemplate(
        name=compilation.graph.name,
        namespace=namespace or None,
        labels={"app.kubernetes.io/part-of": "quantlib"},
        entrypoint=_ENTRYPOINT,
        on_exit=_EXIT_HANDLER,
        arguments=[_argument(setting) for setting in compilation.settings],
        service_account_name=SERVICE_ACCOUNT,
        parallelism=PARALLELISM,
        ttl_strategy=models.TTLStrategy(seconds_after_completion=KEEP_SECONDS),
        # Pods of a run that failed stay, with their logs, as long as the run does.
        pod_gc=models.PodGC(strategy="OnWorkflowSuccess"),
        templates=[root, *loops, *(each.container() for each in steps), report],
    )


def _argument(setting: Setting) -> Parameter:
    choices = None if setting.is_open else list(setting.choices) or None
    argument = Parameter(name=setting.name, description=setting.description, enum=choices)
    if setting.default is not None:
        argument.value = _text(setting.default)
    return argument


@dataclass(frozen=True)
class _Templates:
    """The templates of a step, and the task that calls them."""

    step: Step
    compilation: Compilation

    @cached_property
    def interface(self) -> Interface:
        return interface_of(self.step.name)

    @cached_property
    def pod(self) -> Pod:
        return pod_of(self.step, self.compilation)

    @cached_property
    def parameters(self) -> dict[str, Source]:
        """What its template takes: what its component does, and what the plan says of its pod."""
        sources = {name: self.step.inputs[name] for name in self.interface.parameters}
        for output in self.pod.planned:
            if output not in sources.values():
                sources[output.name] = output
        return sources

    def container(self) -> Container:
        """The template that runs it."""
        return container_of(
            self.step.name,
            self.pod,
            argv_of(self.step.name),
            inputs=[
                *(Parameter(name=name) for name in self.parameters),
                *(Artifact(name=name, path=input_path(name)) for name in self.interface.artifacts),
            ],
            outputs=[
                *(
                    Parameter(name=name, value_from=models.ValueFrom(path=output_path(name)))
                    for name in self.interface.returns
                ),
                *(self._made(name, kind) for name, kind in self.interface.makes.items()),
            ],
            tag_of=lambda output: input_tag(self._name_of(output)),
        )

    def task(self) -> Task:
        """The task of the whole workflow that calls it, or the loop around it."""
        step, sources = self.step, dict(self.parameters)
        needed = dict.fromkeys((*step.needs, *(output.step for output in self.pod.planned)))
        if step.each is not None:
            del sources[self._name_of(Item())]
            sources[step.each.name] = step.each
        return Task(
            name=step.name,
            template=step.name if step.each is None else _loop_name(step),
            # What needs a step that was skipped is omitted, as Kubeflow does it.
            depends=" && ".join(f"{name}.Succeeded" for name in needed) or None,
            when=_when(step.when) if step.when else None,
            arguments=[
                *(Parameter(name=name, value=self._value(each)) for name, each in sources.items()),
                *(self._taken(name) for name in self.interface.artifacts),
            ],
        )

    def loop(self, parallel: int) -> DAG:
        """The template that calls it once for each of what it runs for, some at a time."""
        step, item = self.step, self._name_of(Item())
        assert step.each is not None
        outer = [name for name in self.parameters if name != item]
        artifacts = self.interface.artifacts
        task = Task(
            name=step.name,
            template=step.name,
            with_param=input_tag(step.each.name),
            arguments=[
                Parameter(name=item, value="{{item}}"),
                *(Parameter(name=name, value=input_tag(name)) for name in outer),
                *(Artifact(name=n, from_=f"{{{{inputs.artifacts.{n}}}}}") for n in artifacts),
            ],
        )
        return DAG(
            name=_loop_name(step),
            parallelism=parallel,
            inputs=[
                *(Parameter(name=name) for name in (*outer, step.each.name)),
                *(Artifact(name=name) for name in artifacts),
            ],
            tasks=[task],
        )

    def _name_of(self, source: Source) -> str:
        return next(name for name, each in self.parameters.items() if each == source)

    def _value(self, source: Source) -> str:
        match source:
            case Asked(name):
                return input_tag(name)
            case Constant():
                return _text(self.compilation.constants.value(source))
            case Output(step, name):
                return f"{{{{tasks.{step}.outputs.parameters.{name}}}}}"
            case Item():
                return "{{item}}"

    def _taken(self, name: str) -> Artifact:
        source = self.step.inputs[name]
        assert isinstance(source, Output)
        if self.compilation.graph.is_collected(source):
            return S3Artifact(name=name, key=_folder(source), archive=NoneArchiveStrategy())
        made = f"tasks.{source.step}.outputs.artifacts.{source.name}"
        return Artifact(name=name, from_=f"{{{{{made}}}}}")

    def _made(self, name: str, kind: str) -> Artifact:
        output = Output(self.step.name, name)
        fields: dict[str, Any] = {
            "name": name,
            "path": output_path(name, kind),
            "archive": NoneArchiveStrategy(),  # a few KB of JSON, which a person may want to read
            "optional": True if kind == METRICS else None,
        }
        taken = {each for step in self.compilation.graph.steps for each in step.inputs.values()}
        if output in taken and self.compilation.graph.is_collected(output):
            return S3Artifact(**fields, key=f"{_folder(output)}/{input_tag(self._name_of(Item()))}")
        return Artifact(**fields)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _loop_name(step: Step) -> str:
    assert step.each is not None
    return f"{step.name}-{step.each.name}"


def _when(condition: Condition) -> str:
    source = condition.source
    outputs = f"tasks['{source.step}'].outputs.parameters"
    return f"{{{{={outputs}['{source.name}'] == '{condition.value}'}}}}"


def _folder(output: Output) -> str:
    """Where in the artifact repository all runs of a step put an output."""
    # Names of workflows come again, and files of the earlier one would be taken for this one's.
    return f"{{{{workflow.name}}}}/{{{{workflow.uid}}}}/{output.step}/{output.name}"
