"""The receipt: what a step did, in a few KB of JSON. The format is described in docs/formats.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantlib import __version__
from quantlib.errors import InvalidInputError
from quantlib.faults import faults_of

SCHEMA: Final = "quantlib/receipt/1"
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest_of(value: Any) -> str:
    """``sha256:`` and the hexadecimal digest of a value's canonical JSON."""
    return "sha256:" + hashlib.sha256(canonical_json(value)).hexdigest()


class FileRecord(BaseModel):
    """One file that a step wrote."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tensors: Annotated[
        int | None, Field(description="How many tensors a safetensors file holds.")
    ] = None


class InputReference(BaseModel):
    """The receipt of a step that another step read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: str
    key: str
    digest: Digest


class Receipt(BaseModel):
    """What a step did: written last, it commits the step.

    Attributes:
        step: Name of the step.
        version: Version of the step's meaning; another version is other work.
        key: Name of the step's folder in the store: the digest of everything that decides the
            result.
        parameters: What decided the result, besides the inputs.
        inputs: The receipts that it read, by the name of the input.
        files: The files in the step's folder, by path within it.
        facts: Small results, by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_: Annotated[Literal["quantlib/receipt/1"], Field(alias="schema")] = SCHEMA
    step: str
    version: int
    quantlib: str
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    parameters: dict[str, Any]
    inputs: dict[str, InputReference]
    files: dict[str, FileRecord]
    facts: dict[str, Any] = {}

    @property
    def folder(self) -> str:
        """The step's folder, relative to the store."""
        return step_folder(self.step, self.key)

    def path(self, name: str) -> str:
        """The path of one of the step's files, relative to the store."""
        if name not in self.files:
            raise KeyError(f"step {self.step} wrote no file {name!r}")
        return f"{self.folder}/{name}"

    def reference(self) -> InputReference:
        """What the receipt of a step that reads this one records of it."""
        return InputReference(step=self.step, key=self.key, digest=self.digest())

    def to_json(self) -> bytes:
        """The receipt's canonical bytes."""
        return canonical_json(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    def digest(self) -> str:
        """``sha256:`` and the hexadecimal digest of :meth:`to_json`."""
        return "sha256:" + hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes | bytearray | str, origin: str = "receipt") -> Receipt:
        """Reads a receipt.

        Raises:
            InvalidInputError: ``data`` is no receipt of this schema.
        """
        try:
            return cls.model_validate_json(bytes(data) if isinstance(data, bytearray) else data)
        except ValidationError as error:
            raise InvalidInputError.one(
                origin, f"is no valid receipt: {faults_of(error)}"
            ) from None


def files_digest(files: Mapping[str, FileRecord]) -> str:
    """``sha256:`` digest over the names and digests of a model's files."""
    return digest_of([[name, record.sha256] for name, record in sorted(files.items())])


def step_folder(step: str, key: str) -> str:
    """The folder of a step's files, relative to the store."""
    return f"steps/{step}/{key}"


def step_key(
    step: str, version: int, parameters: Mapping[str, Any], inputs: Mapping[str, str]
) -> str:
    """The digest of everything that decides what a step writes.

    Args:
        step: Name of the step.
        version: Version of the step's meaning.
        parameters: JSON values.
        inputs: Digest of each input receipt.
    """
    decided_by = {
        "step": step,
        "version": version,
        "quantlib": __version__,
        "parameters": dict(parameters),
        "inputs": dict(inputs),
    }
    return digest_of(decided_by).removeprefix("sha256:")
