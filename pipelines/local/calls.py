"""One call of a step, as Kubeflow's launcher makes it, with a folder in place of a bucket.

(kubeflow/pipelines, backend/src/v2/component/launcher_v2.go; quantlib.steps.contract reads it.)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.interface import Interface, artifact, executor_input
from quantlib.errors import StepError

MAX_ARGUMENT_BYTES = 128 * 1024
"""What Linux takes as one argv string (MAX_ARG_STRLEN)."""


@dataclass(frozen=True)
class Artifact:
    """A file that a step wrote, or only metadata."""

    path: Path
    kind: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The artifact as the executor input holds it."""
        return artifact(str(self.path), self.kind, self.metadata)


@dataclass(frozen=True)
class Values:
    """Inputs or outputs of a step, by name; an artifact may be a list of them."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    artifacts: Mapping[str, tuple[Artifact, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """What a runner is to start.

    Attributes:
        step: Name of the step.
        name: The same with what it runs for, where that is one of several: ``quantize[0:8]``.
        image: The container image.
        environment: Variables that are set for it.
        threads: How many threads it should compute with.
        folder: The folder of its log and its outputs.
        inputs: What it is given; artifacts lie in the folders of earlier steps.
        outputs: What it is to write.
        gpus: Those that it may use, as ``CUDA_VISIBLE_DEVICES`` names them; of a machine without
            any, none.
    """

    step: str
    name: str
    image: str
    environment: Mapping[str, str]
    threads: int
    folder: Path
    inputs: Values
    outputs: Interface
    gpus: tuple[str, ...] = ()

    @property
    def log(self) -> Path:
        """Where the output of the process goes."""
        return self.folder / "log.txt"

    @property
    def argv(self) -> tuple[str, ...]:
        """The command.

        Raises:
            StepError: An argument is longer than the system takes.
        """
        text = executor_input(
            json.dumps(dict(self.inputs.parameters), separators=(",", ":")),
            {
                name: [each.to_json() for each in artifacts]
                for name, artifacts in self.inputs.artifacts.items()
            },
            {name: str(self.folder / "parameters" / name) for name in self.outputs.returns},
            {name: made.to_json() for name, made in self._provisioned().items()},
            str(self._output_file),
        )
        if (length := len(text.encode())) >= MAX_ARGUMENT_BYTES:
            raise StepError(
                self.name,
                f"an argument of {length} bytes is longer than the system's {MAX_ARGUMENT_BYTES}; "
                "use a shorter recipe or fewer ranges",
            )
        return ("python", "-m", "quantlib.steps", self.step, "--executor-input", text)

    def prepare(self) -> None:
        """Makes the folders for the outputs, and removes those of an earlier attempt."""
        for part in ("artifacts", "parameters"):
            shutil.rmtree(self.folder / part, ignore_errors=True)
            (self.folder / part).mkdir(parents=True)
        self._output_file.unlink(missing_ok=True)

    def collect(self) -> Values:
        """Reads the outputs of a step that succeeded.

        Raises:
            StepError: An output is missing or damaged.
        """
        try:
            written = json.loads(self._output_file.read_text(encoding="utf-8"))
            values = written.get("parameterValues", {})
            if missing := self.outputs.returns.keys() - values.keys():
                raise StepError(self.name, f"did not write its output {', '.join(sorted(missing))}")
            metadata = {
                name: entry["artifacts"][0].get("metadata", {})
                for name, entry in written.get("artifacts", {}).items()
            }
        except OSError as error:
            raise StepError(self.name, f"did not write its output {error.filename}") from None
        except (ValueError, AttributeError, TypeError, LookupError) as error:
            raise StepError(self.name, f"wrote a damaged executor output: {error!r}") from None
        return Values(
            {name: values[name] for name in self.outputs.returns},
            {
                name: (replace(made, metadata=metadata.get(name, {})),)
                for name, made in self._provisioned().items()
            },
        )

    def _provisioned(self) -> dict[str, Artifact]:
        return {
            name: Artifact(self.folder / "artifacts" / name, kind)
            for name, kind in self.outputs.makes.items()
        }

    @property
    def _output_file(self) -> Path:
        return self.folder / "executor_output.json"
