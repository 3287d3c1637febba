"""What passes between Kubeflow and a step: the executor input and the executor output.

The executor input is the JSON that the launcher substitutes for ``{{$}}``: parameter values, input
artifacts by URI, and where the outputs go. The step writes each output parameter and artifact to
its path, and the executor output, which gives artifacts their metadata, to ``outputs.outputFile``
(kubeflow/pipelines, api/v2alpha1/pipeline_spec.proto: ExecutorInput, ExecutorOutput).

Artifacts are receipts, reports and metrics: a few KB each. Bulk never travels this way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantlib.checks.recipe_choice import recipe_of
from quantlib.errors import InvalidInputError
from quantlib.recipe import AskedRecipe
from quantlib.store import Receipt, Store, open_store
from quantlib.store.transaction import was_reused

ARTIFACT_BYTES = 16 * 1024
"""What an artifact stays below: the launcher copies each one into every pod that takes it."""

_MOUNTS = {"gs://": "/gcs/", "s3://": "/s3/", "minio://": "/minio/"}
"""Where the launcher puts the files of an artifact store, by the scheme of their URIs."""


def local_path(uri: str) -> Path:
    """Where a container finds the artifact at ``uri``."""
    for scheme, mount in _MOUNTS.items():
        if uri.startswith(scheme):
            return Path(mount + uri.removeprefix(scheme))
    return Path(uri.removeprefix("file://"))


@dataclass
class StepCall:
    """One call of a step, and what it has written so far.

    Attributes:
        made: The receipts that it wrote, with the stores that they are in.
    """

    parameters: Mapping[str, Any]
    inputs: Mapping[str, list[dict[str, Any]]]
    output_parameters: Mapping[str, Path]
    outputs: Mapping[str, dict[str, Any]]
    output_file: Path
    made: list[tuple[Store, Receipt]] = field(default_factory=list)
    _metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
    _values: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> StepCall:
        """Reads an executor input.

        Raises:
            InvalidInputError: ``text`` is no executor input.
        """
        try:
            data = json.loads(text)
            inputs, outputs = data.get("inputs", {}), data["outputs"]
            return cls(
                parameters=inputs.get("parameterValues", {}),
                inputs={
                    name: entry["artifacts"] for name, entry in inputs.get("artifacts", {}).items()
                },
                output_parameters={
                    name: Path(entry["outputFile"])
                    for name, entry in outputs.get("parameters", {}).items()
                },
                outputs={
                    name: entry["artifacts"][0]
                    for name, entry in outputs.get("artifacts", {}).items()
                },
                output_file=Path(outputs["outputFile"]),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise InvalidInputError.one(
                "--executor-input", f"is no executor input: {error!r}"
            ) from None

    @property
    def iteration(self) -> str | None:
        """What it runs for, of a step that runs once for each range."""
        value = self.parameters.get("block_range")
        return None if value is None else str(value)

    def text(self, name: str) -> str:
        """A string parameter.

        Raises:
            InvalidInputError: It is missing.
        """
        return str(self._parameter(name))

    def texts(self, name: str) -> list[str]:
        """A parameter that is a list of strings.

        Raises:
            InvalidInputError: It is missing or no such list.
        """
        value = self._parameter(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InvalidInputError.one(f"parameter {name}", f"is no list of strings: {value!r}")
        return value

    def recipe_choice(self) -> AskedRecipe:
        """The recipe that the parameters of a step choose that comes first.

        Raises:
            InvalidInputError: It is none.
        """
        return recipe_of(self.parameters)

    def integer(self, name: str) -> int:
        """An integer parameter. Kubeflow passes integers as floats.

        Raises:
            InvalidInputError: It is missing or not a whole number.
        """
        value = self._parameter(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
            raise InvalidInputError.one(f"parameter {name}", f"is no whole number: {value!r}")
        return int(value)

    def gpus(self) -> int:
        """GPUs that share a model. The plan's word for none is 0: one, on whatever there is.

        Raises:
            InvalidInputError: The parameter ``gpus`` is missing or no number.
        """
        text = self.text("gpus")
        if not text.isdecimal():
            raise InvalidInputError.one("parameter gpus", f"is no number of GPUs: {text!r}")
        return max(1, int(text))

    def store(self) -> Store:
        """The store that the parameter ``store`` names."""
        return open_store(self.text("store"))

    def receipt(self, name: str) -> Receipt:
        """The receipt that the input artifact ``name`` holds.

        Raises:
            InvalidInputError: It is missing or no receipt.
        """
        receipts = self.receipts(name)
        if len(receipts) != 1:
            raise InvalidInputError.one(f"input {name}", f"holds {len(receipts)} artifacts, not 1")
        return receipts[0]

    def receipts(self, name: str) -> list[Receipt]:
        """The receipts of an input that is a list of artifacts.

        An artifact that is a folder stands for the files in it, in the order of their names. Argo
        delivers what the iterations of a loop wrote as one folder.

        Raises:
            InvalidInputError: One is missing or no receipt.
        """
        if name not in self.inputs:
            raise InvalidInputError.one(f"input {name}", "is missing")
        receipts = []
        for artifact in self.inputs[name]:
            path = local_path(artifact["uri"])
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                try:
                    receipts.append(Receipt.from_json(file.read_bytes(), origin=str(file)))
                except OSError as error:
                    raise InvalidInputError.one(
                        f"input {name}", f"{file} cannot be read: {error.strerror}"
                    ) from None
        return receipts

    def write_parameter(self, name: str, value: Any) -> None:
        """Writes an output parameter: a string as it is, anything else as JSON."""
        path = self.output_parameters[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        self._values[name] = value

    def write_receipt(
        self, name: str, store: Store, receipt: Receipt, about: Mapping[str, Any] | None = None
    ) -> None:
        """Writes a receipt as the output artifact ``name``.

        Args:
            name: Name of the output.
            store: Where the receipt is.
            receipt: Of the step.
            about: What the artifact is, in the place of what is said of every receipt.
        """
        self.made.append((store, receipt))
        self.write_artifact(
            name,
            receipt.to_json(),
            {
                # What the UI calls the artifact, in the run's page and in its lineage.
                "display_name": f"{receipt.step} {receipt.key[:12]}",
                "step": receipt.step,
                "reused": was_reused(store, receipt),
                "key": receipt.key,
                "digest": receipt.digest(),
                "address": store.full_address(receipt.address),
                **(about or {}),
            },
        )

    def write_artifact(
        self, name: str, data: bytes | None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Writes an output artifact.

        Args:
            name: Name of the output.
            data: Its content; None for an artifact that is metadata only, as metrics are.
            metadata: Shown in the UI.
        """
        if data is not None:
            path = local_path(self.outputs[name]["uri"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self._metadata[name] = dict(metadata or {})

    def write_summary(self, text: str) -> None:
        """Writes the page about the step, in Markdown: its output that is called a summary."""
        name = next(each for each in self.outputs if each.endswith("_summary"))
        self.write_artifact(name, text.encode())

    def write_beside(self, name: str, file: str, data: bytes) -> None:
        """Writes a file beside an output artifact: a local run keeps it, Kubeflow does not."""
        path = local_path(self.outputs[name]["uri"]).with_name(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    @property
    def is_reused(self) -> bool:
        """Whether all that the step delivers was in the store."""
        receipts = [each["reused"] for each in self._metadata.values() if "reused" in each]
        return bool(receipts) and all(receipts)

    def finish(self) -> None:
        """Writes the executor output."""
        output: dict[str, Any] = {
            "artifacts": {
                name: {
                    "artifacts": [
                        {
                            "name": artifact.get("name", ""),
                            "type": artifact.get("type", {}),
                            "uri": artifact["uri"],
                            "metadata": artifact.get("metadata", {}) | self._metadata.get(name, {}),
                        }
                    ]
                }
                for name, artifact in self.outputs.items()
            }
        }
        if self._values:
            output["parameterValues"] = self._values
        self.output_file.parent.mkdir(parents=True, exist_ok=True)
        self.output_file.write_text(json.dumps(output), encoding="utf-8")

    def _parameter(self, name: str) -> Any:
        if name not in self.parameters:
            raise InvalidInputError.one(f"parameter {name}", "is missing")
        return self.parameters[name]
