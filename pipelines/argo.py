"""A compiled pipeline as a ``WorkflowTemplate`` of Argo Workflows, for clusters without Kubeflow.

Every task becomes a template: a container, or a DAG of its own for the body of a loop or the branch
of a condition. What has no counterpart in Argo is refused, never left out. docs/argo.md says how
the result is used, docs/decisions/0003-argo.md why it is made this way.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from pipelines._argo_dag import dag_templates
from pipelines._argo_pod import container_fields, pod_fields
from pipelines._argo_values import given, plain
from pipelines.ir import Container, ParameterSpec, Pipeline
from pipelines.platform_spec import KubernetesConfig
from pipelines.values import to_text
from quantlib.errors import InvalidInputError

SERVICE_ACCOUNT = "quantlib-runner"
PARALLELISM = 32
KEEP_SECONDS = 7 * 24 * 3600
_EXIT_HANDLER = "report-outcome"
_ENTRYPOINT = "pipeline"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_REPORT = "import sys; print(*sys.argv[1:])"


def workflow_template(
    pipeline: Pipeline,
    *,
    namespace: str = "",
    service_account: str = SERVICE_ACCOUNT,
    parallelism: int = PARALLELISM,
) -> dict[str, Any]:
    """The pipeline as a ``WorkflowTemplate``.

    Args:
        pipeline: What :func:`pipelines.reader.load_pipeline` returned.
        namespace: Where it goes; empty to leave that open.
        service_account: What the pods run as.
        parallelism: How many pods of one run there may be at once.

    Raises:
        InvalidInputError: Something in the pipeline has no counterpart in Argo; the error names
            the task.
    """
    name = pipeline.name
    if len(name) > 63 or not _NAME.fullmatch(name):
        raise InvalidInputError.one("pipeline", f"{name!r} is no name for a workflow template")
    if pipeline.root.inputs.artifacts:
        what = f"takes artifacts: {', '.join(pipeline.root.inputs.artifacts)}"
        raise InvalidInputError.one(f"pipeline {name}", what, "only parameters can be given")
    templates = [
        *dag_templates(pipeline, _ENTRYPOINT, pipeline.root),
        _exit_handler(pipeline),
    ]
    counts = Counter(template["name"] for template in templates)
    if twice := [each for each, count in counts.items() if count > 1]:
        raise InvalidInputError.one(f"pipeline {name}", f"several parts are called {twice[0]}")
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "WorkflowTemplate",
        "metadata": {
            "name": name,
            **given(namespace=namespace),
            "labels": {"app.kubernetes.io/part-of": "quantlib"},
        },
        "spec": {
            "entrypoint": _ENTRYPOINT,
            "onExit": _EXIT_HANDLER,
            "arguments": {
                "parameters": [
                    _argument(parameter, spec)
                    for parameter, spec in pipeline.root.inputs.parameters.items()
                ]
            },
            "serviceAccountName": service_account,
            "parallelism": parallelism,
            "ttlStrategy": {"secondsAfterCompletion": KEEP_SECONDS},
            # Pods of a run that failed stay, with their logs, as long as the run does.
            "podGC": {"strategy": "OnWorkflowSuccess"},
            "templates": templates,
        },
    }


def write_workflow_template(pipeline: Pipeline, path: Path, *, namespace: str = "") -> None:
    """Writes the ``WorkflowTemplate`` as YAML, creating the folder that it goes to.

    Args:
        pipeline: What :func:`pipelines.reader.load_pipeline` returned.
        path: The file to write.
        namespace: Where the object goes; empty to leave that open.

    Raises:
        InvalidInputError: As :func:`workflow_template`.
    """
    document = workflow_template(pipeline, namespace=namespace)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document, sort_keys=False, width=100), encoding="utf-8")


def _argument(name: str, spec: ParameterSpec) -> dict[str, Any]:
    where = f"parameter {name}"
    argument: dict[str, Any] = {"name": name}
    if spec.default is not None:
        argument["value"] = plain(to_text(spec.default), where)
    elif spec.optional:
        raise InvalidInputError.one(
            where, "is optional without a default, which Argo does not know", "give it a default"
        )
    if spec.description:
        argument["description"] = plain(" ".join(spec.description.split()), where)
    if spec.literals:
        argument["enum"] = [plain(to_text(literal), where) for literal in spec.literals]
    return argument


def _exit_handler(pipeline: Pipeline) -> dict[str, Any]:
    """Prints how the run ended, in the image of the first step, which the run has pulled."""
    first = next(iter(pipeline.containers.values()), None)
    if first is None:
        raise InvalidInputError.one(f"pipeline {pipeline.name}", "runs no container")
    config = first.kubernetes
    own = KubernetesConfig(
        pull_policy=config.pull_policy, user=config.user, group=config.group, non_root=True
    )
    container = Container(first.image, (), {}, kubernetes=own)
    return {
        "name": _EXIT_HANDLER,
        **pod_fields(container, _EXIT_HANDLER),
        "container": {
            **container_fields(container, _EXIT_HANDLER),
            "command": ["python"],
            "args": ["-c", _REPORT, "{{workflow.status}}", "{{workflow.failures}}"],
        },
    }
