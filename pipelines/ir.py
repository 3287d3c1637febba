"""A compiled pipeline, as frozen values.

The compiler of kfp writes a pipeline as YAML in the schema of kubeflow/pipelines,
api/v2alpha1/pipeline_spec.proto. :func:`pipelines.reader.load_pipeline` reads it into these values,
whose references all resolve.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipelines.expressions import Expression
from pipelines.placeholders import Template
from pipelines.platform_spec import KubernetesConfig


@dataclass(frozen=True)
class ParameterSpec:
    """A parameter of a component.

    Attributes:
        default: None where there is none.
        literals: The only values that it may have; empty for any.
        description: What it is for, in words.
    """

    type: str
    optional: bool = False
    default: Any = None
    literals: tuple[Any, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class ArtifactSpec:
    """An artifact of a component, such as ``system.Metrics`` in version ``0.0.1``."""

    schema_title: str
    schema_version: str
    is_list: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Definitions:
    """The inputs, or the outputs, of a component."""

    parameters: Mapping[str, ParameterSpec]
    artifacts: Mapping[str, ArtifactSpec]


@dataclass(frozen=True)
class Constant:
    """A value that stands in the pipeline."""

    value: Any


@dataclass(frozen=True)
class DagInput:
    """An input of the DAG that the task is in."""

    name: str


@dataclass(frozen=True)
class TaskOutput:
    """An output of another task of the same DAG."""

    task: str
    name: str


@dataclass(frozen=True)
class Loop:
    """A task that runs once for every item of a list.

    Attributes:
        items: The list, or the name of the task's input parameter that holds it.
        item_input: The input parameter that an iteration takes its item as.
        parallelism: How many iterations may run at once; 0 for any number.
    """

    items: tuple[Any, ...] | str
    item_input: str
    parallelism: int


@dataclass(frozen=True)
class Retry:
    """How often a container that failed is started again.

    Attributes:
        count: Attempts after the first.
        delay: Seconds before the second attempt.
        factor: What the delay is multiplied by for every further attempt.
        limit: Seconds since the start of the first attempt after which there is no other; 0 for
            any number.
    """

    count: int = 0
    delay: float = 0.0
    factor: float = 1.0
    limit: float = 0.0


@dataclass(frozen=True)
class Task:
    """One task of a DAG.

    Attributes:
        component: Name of the component that it runs.
        dependencies: Tasks that must succeed before, those whose outputs it takes among them.
        pod_parameters: Values that only the resources of its container name.
    """

    name: str
    component: str
    parameters: Mapping[str, Constant | DagInput | TaskOutput]
    artifacts: Mapping[str, DagInput | TaskOutput]
    dependencies: tuple[str, ...]
    condition: Expression | None
    loop: Loop | None
    retry: Retry
    pod_parameters: Mapping[str, Constant | DagInput | TaskOutput] = field(default_factory=dict)


@dataclass(frozen=True)
class Resources:
    """What a container asks for, as quantities of Kubernetes; empty for nothing.

    A placeholder in one names a value of the task's ``parameters`` or ``pod_parameters``.
    """

    cpu_request: Template = ()
    cpu_limit: Template = ()
    memory_request: Template = ()
    memory_limit: Template = ()
    accelerator_type: Template = ()
    accelerator_count: Template = ()


@dataclass(frozen=True)
class Container:
    """What a task without tasks of its own runs."""

    image: str
    argv: tuple[Template, ...]
    environment: Mapping[str, str]
    resources: Resources = field(default_factory=Resources)
    kubernetes: KubernetesConfig = field(default_factory=KubernetesConfig)


@dataclass(frozen=True)
class Dag:
    """Tasks, and which of their outputs are outputs of the whole.

    An output with several sources is that of the one source that ran (``dsl.OneOf``).
    """

    tasks: Mapping[str, Task]
    parameters: Mapping[str, tuple[TaskOutput, ...]]
    artifacts: Mapping[str, tuple[TaskOutput, ...]]


@dataclass(frozen=True)
class Component:
    """A signature and what implements it."""

    inputs: Definitions
    outputs: Definitions
    implementation: Container | Dag


@dataclass(frozen=True)
class Pipeline:
    """A compiled pipeline."""

    name: str
    components: Mapping[str, Component]
    root: Component

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the tasks that run a container, in an order that they may run in."""
        return tuple(self.containers)

    @cached_property
    def containers(self) -> Mapping[str, Container]:
        """What the steps run, in the order of :attr:`steps`."""
        return dict(self._containers_of(self.root))

    def _containers_of(self, component: Component) -> Iterator[tuple[str, Container]]:
        dag = component.implementation
        assert isinstance(dag, Dag)
        graph = {name: task.dependencies for name, task in dag.tasks.items()}
        for name in graphlib.TopologicalSorter(graph).static_order():
            inner = self.components[dag.tasks[name].component]
            if isinstance(inner.implementation, Container):
                yield name, inner.implementation
            else:
                yield from self._containers_of(inner)
