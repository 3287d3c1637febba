"""Closed reading of a compiled pipeline.

What the pipelines of this project use of the schema is read; whatever else is in the file is
refused with its path, because a field that was ignored would make a local run differ from the
cluster's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from pipelines._fields import Fields
from pipelines._pod_parameters import SameInput, with_pod_parameters
from pipelines._references import check_placeholders, check_references
from pipelines.expressions import parse_condition
from pipelines.ir import (
    ArtifactSpec,
    Component,
    Constant,
    Container,
    Dag,
    DagInput,
    Definitions,
    Loop,
    ParameterSpec,
    Pipeline,
    Resources,
    Retry,
    Task,
    TaskOutput,
)
from pipelines.placeholders import Template, parse_template
from pipelines.platform_spec import KubernetesConfig, read_platform
from quantlib.errors import InvalidInputError

SCHEMA_VERSION = "2.1.0"
_SAME_INPUT = re.compile(r"{{\$\.inputs\.parameters\['([^']+)'\]}}")
PARAMETER_TYPES = ("STRING", "NUMBER_INTEGER", "NUMBER_DOUBLE", "BOOLEAN", "LIST", "STRUCT")


def load_pipeline(path: Path) -> Pipeline:
    """Reads a compiled pipeline.

    Raises:
        InvalidInputError: The file cannot be read, is damaged, or holds something that is not
            supported; the error gives the path of it.
    """
    try:
        return read_pipeline(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InvalidInputError.one(str(path), f"cannot be read: {error.strerror}") from None


def read_pipeline(text: str, origin: str = "pipeline") -> Pipeline:
    """Reads the text of a compiled pipeline.

    Args:
        text: The YAML.
        origin: What to call it in error messages.

    Raises:
        InvalidInputError: As :func:`load_pipeline`.
    """
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise InvalidInputError.one(origin, f"is no YAML: {error}") from None
    if len(documents) not in (1, 2):
        raise InvalidInputError.one(origin, f"holds {len(documents)} documents, not 1 or 2")
    platform = read_platform(documents[1], origin) if len(documents) == 2 else {}
    with Fields(documents[0], origin) as fields:
        if (version := fields.text("schemaVersion")) != SCHEMA_VERSION:
            raise fields.error(f"has schema {version}, not {SCHEMA_VERSION}", "compile it again")
        fields.text("sdkVersion")
        fields.text("defaultPipelineRoot", "")
        with fields.fields("pipelineInfo") as info:
            name = info.text("name")
            info.text("description", "")
        with fields.fields("deploymentSpec") as deployment:
            containers = dict(_read_executors(deployment, platform))
        components = {
            name: _read_component(entry, containers) for name, entry in fields.entries("components")
        }
        root = _read_component(fields.fields("root"), containers)
    pipeline = with_pod_parameters(Pipeline(name, components, root), origin)
    check_references(pipeline, origin)
    return pipeline


def _read_executors(
    deployment: Fields, platform: dict[str, KubernetesConfig]
) -> Iterator[tuple[str, Container]]:
    for name, executor in deployment.entries("executors"):
        if "container" not in executor:
            raise executor.error("runs no container, which is not supported")
        with executor, executor.fields("container") as container:
            command = container.texts("command")
            argv = command + container.texts("args")
            if not command or "{{$" in command[0]:
                raise container.error("needs a command without placeholder to start with")
            environment = {}
            for variable in container.elements("env"):
                with variable:
                    environment[variable.text("name")] = variable.text("value")
            yield (
                name,
                Container(
                    container.text("image"),
                    tuple(parse_template(part, container.where("argv")) for part in argv),
                    environment,
                    _read_resources(container.fields("resources")),
                    platform.pop(name, KubernetesConfig()),
                ),
            )
    if platform:
        raise deployment.error(f"the platform's document configures unknown {', '.join(platform)}")


def _read_resources(entry: Fields) -> Resources:
    def quantity(fields: Fields, name: str, older: str) -> Template:
        fields.value(older)  # the same as a number, for older backends
        return parse_template(fields.text(name, ""), fields.where(name))

    with entry, entry.fields("accelerator") as accelerator:
        return Resources(
            cpu_request=quantity(entry, "resourceCpuRequest", "cpuRequest"),
            cpu_limit=quantity(entry, "resourceCpuLimit", "cpuLimit"),
            memory_request=quantity(entry, "resourceMemoryRequest", "memoryRequest"),
            memory_limit=quantity(entry, "resourceMemoryLimit", "memoryLimit"),
            accelerator_type=quantity(accelerator, "resourceType", "type"),
            accelerator_count=quantity(accelerator, "resourceCount", "count"),
        )


def _read_component(entry: Fields, containers: Mapping[str, Container]) -> Component:
    with entry:
        inputs = _read_definitions(entry.fields("inputDefinitions"))
        outputs = _read_definitions(entry.fields("outputDefinitions"))
        if "dag" in entry:
            return Component(inputs, outputs, _read_dag(entry.fields("dag")))
        label = entry.text("executorLabel")
        if label not in containers:
            raise entry.error_of("executorLabel", f"unknown executor {label}")
        check_placeholders(containers[label], inputs, outputs, entry.where())
        return Component(inputs, outputs, containers[label])


def _read_definitions(definitions: Fields) -> Definitions:
    parameters, artifacts = {}, {}
    with definitions:
        for name, entry in definitions.entries("parameters"):
            with entry:
                kind = entry.text("parameterType")
                if kind not in PARAMETER_TYPES:
                    raise entry.error(f"has type {kind}, which is not supported")
                literals = entry.value("literals")
                parameters[name] = ParameterSpec(
                    kind,
                    entry.boolean("isOptional"),
                    entry.value("defaultValue"),
                    tuple(literals or ()),
                    entry.text("description", ""),
                )
        for name, entry in definitions.entries("artifacts"):
            with entry, entry.fields("artifactType") as kind_fields:
                entry.text("description", "")
                artifacts[name] = ArtifactSpec(
                    kind_fields.text("schemaTitle"),
                    kind_fields.text("schemaVersion"),
                    entry.boolean("isArtifactList"),
                    entry.boolean("isOptional"),
                )
    return Definitions(parameters, artifacts)


def _read_dag(entry: Fields) -> Dag:
    with entry:
        tasks = {name: _read_task(name, task) for name, task in entry.entries("tasks")}
        with entry.fields("outputs") as outputs:
            parameters = {}
            for name, output in outputs.entries("parameters"):
                with output:
                    if "valueFromParameter" in output:
                        sources = [output.fields("valueFromParameter")]
                    else:
                        with output.fields("valueFromOneof") as one_of:
                            sources = list(one_of.elements("parameterSelectors"))
                    parameters[name] = tuple(
                        _read_reference(source, "producerSubtask", "outputParameterKey")
                        for source in sources
                    )
            artifacts = {}
            for name, output in outputs.entries("artifacts"):
                with output:
                    artifacts[name] = tuple(
                        _read_reference(source, "producerSubtask", "outputArtifactKey")
                        for source in output.elements("artifactSelectors")
                    )
    return Dag(tasks, parameters, artifacts)


def _read_reference(entry: Fields, task: str, name: str) -> TaskOutput:
    with entry:
        return TaskOutput(entry.text(task), entry.text(name))


def _read_task(name: str, entry: Fields) -> Task:
    with entry:
        with entry.fields("taskInfo") as info:
            info.text("name", "")
        with entry.fields("cachingOptions") as caching:
            caching.boolean("enableCache")  # a local run has no cache to take results from
        with entry.fields("componentRef") as reference:
            component = reference.text("name")
        with entry.fields("inputs") as inputs:
            parameters = {
                key: _read_parameter_source(source) for key, source in inputs.entries("parameters")
            }
            artifacts = {
                key: _read_artifact_source(source) for key, source in inputs.entries("artifacts")
            }
        with entry.fields("triggerPolicy") as trigger:
            where = trigger.where("condition")
            text = trigger.text("condition", "")
            condition = parse_condition(text, where) if text else None
        producers = {
            source.task
            for source in (*parameters.values(), *artifacts.values())
            if isinstance(source, TaskOutput)
        }
        return Task(
            name=name,
            component=component,
            parameters=parameters,  # type: ignore[arg-type]  # settled by with_pod_parameters
            artifacts=artifacts,
            dependencies=tuple(sorted(producers | set(entry.texts("dependentTasks")))),
            condition=condition,
            loop=_read_loop(entry),
            retry=_read_retry(entry.fields("retryPolicy")),
        )


def _read_parameter_source(entry: Fields) -> Constant | DagInput | TaskOutput | SameInput:
    with entry:
        if "componentInputParameter" in entry:
            return DagInput(entry.text("componentInputParameter"))
        if "taskOutputParameter" in entry:
            output = entry.fields("taskOutputParameter")
            return _read_reference(output, "producerTask", "outputParameterKey")
        with entry.fields("runtimeValue") as runtime:
            value = runtime.value("constant")
        if isinstance(value, str) and (same := _SAME_INPUT.fullmatch(value)):
            return SameInput(same[1])
        if isinstance(value, str) and "{{$" in value:
            raise entry.error(f"a placeholder in a constant is not supported: {value!r}")
        if value is None:
            raise entry.error("gives no value in a way that is supported")
        return Constant(value)


def _read_artifact_source(entry: Fields) -> DagInput | TaskOutput:
    with entry:
        if "componentInputArtifact" in entry:
            return DagInput(entry.text("componentInputArtifact"))
        output = entry.fields("taskOutputArtifact")
        return _read_reference(output, "producerTask", "outputArtifactKey")


def _read_loop(entry: Fields) -> Loop | None:
    with entry.fields("iteratorPolicy") as policy:
        parallelism = int(policy.number("parallelismLimit", 0))
    if "parameterIterator" not in entry:
        return None
    with entry.fields("parameterIterator") as iterator:
        item_input = iterator.text("itemInput")
        with iterator.fields("items") as items:
            if "inputParameter" in items:
                return Loop(items.text("inputParameter"), item_input, parallelism)
            try:
                return Loop(tuple(json.loads(items.text("raw"))), item_input, parallelism)
            except (ValueError, TypeError):
                raise items.error_of("raw", "is no JSON list") from None


def _read_retry(entry: Fields) -> Retry:
    with entry:
        return Retry(
            count=int(entry.number("maxRetryCount", 0)),
            delay=entry.seconds("backoffDuration"),
            factor=entry.number("backoffFactor", 1.0),
            limit=entry.seconds("backoffMaxDuration"),
        )
