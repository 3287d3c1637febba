"""One start of a container, as Kubeflow's launcher does it, with a folder in place of a bucket.

(kubeflow/pipelines, backend/src/v2/component/launcher_v2.go and driver/driver.go.)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.ir import Component, Container
from pipelines.placeholders import EXECUTOR_INPUT, Placeholder, substitute
from pipelines.values import Artifact, Values, from_text, to_text
from quantlib.errors import InvalidInputError, StepError

MAX_ARGUMENT_BYTES = 128 * 1024
"""What Linux takes as one argv string (MAX_ARG_STRLEN)."""


@dataclass(frozen=True)
class Launch:
    """What a runner is to start.

    Attributes:
        name: Name of the task, with the item of the loop that it is in: ``quantize[0:8]``.
        image: The container image.
        argv: The command with its arguments, no placeholders left.
        environment: Variables that the pipeline sets.
        threads: How many threads the process should compute with.
        folder: The task's folder, which every output that ``argv`` names lies in.
        parameters: Values of the input parameters.
        artifacts: Files of the input artifacts, which lie in the folders of earlier tasks.
    """

    name: str
    image: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    threads: int
    folder: Path
    parameters: Mapping[str, Any]
    artifacts: tuple[Path, ...]

    @property
    def log(self) -> Path:
        """Where the output of the process goes."""
        return self.folder / "log.txt"


def prepare(name: str, component: Component, inputs: Values, folder: Path, threads: int) -> Launch:
    """Makes the folders for the outputs and fills in the placeholders.

    Args:
        name: Name of the task.
        component: What it runs.
        inputs: Its inputs; defaults are added here, as the launcher does.
        folder: The task's folder. Outputs of an earlier attempt are removed.
        threads: How many threads the process should compute with.

    Raises:
        StepError: An argument is longer than the system takes.
    """
    container = component.implementation
    assert isinstance(container, Container)
    for outputs in ("artifacts", "parameters"):
        shutil.rmtree(folder / outputs, ignore_errors=True)
        (folder / outputs).mkdir(parents=True)
    _output_file(folder).unlink(missing_ok=True)
    parameters = dict(inputs.parameters)
    for key, spec in component.inputs.parameters.items():
        if spec.default is not None:
            parameters.setdefault(key, spec.default)
    provisioned = _provision(component, folder)
    executor_input = {
        "inputs": _without_empty(
            parameterValues=parameters,
            artifacts={
                key: {"artifacts": [artifact.to_json() for artifact in artifacts]}
                for key, artifacts in inputs.artifacts.items()
            },
        ),
        "outputs": {
            **_without_empty(
                parameters={
                    key: {"outputFile": str(_parameter_file(folder, key))}
                    for key in component.outputs.parameters
                },
                artifacts={
                    key: {"artifacts": [artifact.to_json()]}
                    for key, artifact in provisioned.items()
                },
            ),
            "outputFile": str(_output_file(folder)),
        },
    }
    text = json.dumps(executor_input, separators=(",", ":"))
    values = {EXECUTOR_INPUT: text}
    for key, value in parameters.items():
        values[Placeholder("inputs.parameters", key)] = to_text(value)
    for key in component.outputs.parameters:
        placeholder = Placeholder("outputs.parameters", key, "output_file")
        values[placeholder] = str(_parameter_file(folder, key))
    singles = {key: artifacts[0] for key, artifacts in inputs.artifacts.items() if artifacts}
    for group, artifacts in (("inputs.artifacts", singles), ("outputs.artifacts", provisioned)):
        for key, artifact in artifacts.items():
            values[Placeholder(group, key, "path")] = str(artifact.path)
            values[Placeholder(group, key, "uri")] = artifact.uri
    argv = tuple(substitute(template, values) for template in container.argv)
    longest = max(len(argument.encode()) for argument in argv)
    if longest >= MAX_ARGUMENT_BYTES:
        raise StepError(
            name,
            f"an argument of {longest} bytes is longer than the system's {MAX_ARGUMENT_BYTES}; "
            "use a shorter recipe or fewer ranges",
        )
    return Launch(
        name,
        container.image,
        argv,
        container.environment,
        threads,
        folder,
        parameters,
        tuple(artifact.path for found in inputs.artifacts.values() for artifact in found),
    )


def collect(name: str, component: Component, folder: Path) -> Values:
    """Reads the outputs of a step that succeeded.

    The executor output, where the step wrote one, wins over the files of the parameters, and adds
    to the artifacts' metadata.

    Raises:
        StepError: An output is missing or of the wrong type.
    """
    try:
        written = _read_executor_output(folder)
        values = written.get("parameterValues", {})
        parameters = {
            key: values[key]
            if key in values
            else from_text(_parameter_file(folder, key).read_text(encoding="utf-8"), spec, key)
            for key, spec in component.outputs.parameters.items()
        }
        artifacts = {
            key: (_merge(artifact, written.get("artifacts", {}).get(key, {})),)
            for key, artifact in _provision(component, folder).items()
        }
    except OSError as error:
        raise StepError(name, f"did not write its output {error.filename}") from None
    except InvalidInputError as error:
        raise StepError(name, f"wrote a wrong output: {error}") from None
    except (ValueError, AttributeError, TypeError, LookupError) as error:
        raise StepError(name, f"wrote a damaged executor output: {error!r}") from None
    return Values(parameters, artifacts)


def _provision(component: Component, folder: Path) -> dict[str, Artifact]:
    return {
        key: Artifact(
            key, spec.schema_title, spec.schema_version, f"file://{folder / 'artifacts' / key}"
        )
        for key, spec in component.outputs.artifacts.items()
    }


def _merge(artifact: Artifact, written: Mapping[str, Any]) -> Artifact:
    for entry in written.get("artifacts", []):
        return Artifact(
            artifact.name,
            artifact.schema_title,
            artifact.schema_version,
            entry.get("uri") or artifact.uri,
            {**artifact.metadata, **entry.get("metadata", {})},
        )
    return artifact


def _read_executor_output(folder: Path) -> dict[str, Any]:
    path = _output_file(folder)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _parameter_file(folder: Path, name: str) -> Path:
    return folder / "parameters" / name


def _output_file(folder: Path) -> Path:
    return folder / "executor_output.json"


def _without_empty(**fields: Mapping[str, Any]) -> dict[str, Any]:
    # protojson, which the launcher writes with, leaves empty maps out.
    return {name: value for name, value in fields.items() if value}
