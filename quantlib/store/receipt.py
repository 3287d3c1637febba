"""The receipt: what a step did, in a few KB of JSON. docs/formats/store.md describes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantlib.errors import InvalidInputError
from quantlib.runtime.foreign_json import parse_json
from quantlib.runtime.pydantic_faults import faults_of

SCHEMA: Final = "quantlib/receipt/2"
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


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

    @property
    def blob(self) -> str:
        """Where a store keeps the content, relative to it."""
        return f"blobs/sha256/{self.sha256}"

    def same_content(self, other: FileRecord) -> bool:
        """Whether both are of the same bytes."""
        return (self.bytes, self.sha256) == (other.bytes, other.sha256)


class InputReference(BaseModel):
    """The receipt of a step that another step read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: Name
    key: Key
    digest: Digest

    @property
    def receipt_path(self) -> str:
        """Where a store keeps the receipt, relative to it."""
        return receipt_path(self.step, self.key)


class MadeBy(BaseModel):
    """What a step ran in: it does not decide what it wrote, and is no part of its key.

    Attributes:
        image: The container image, by digest where it is known by one; None outside of a container.
        hardware: What it computed on, in words: the GPU's or the CPU's name.
        versions: Of the packages that compute, by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str | None = None
    hardware: str | None = None
    versions: dict[str, str] = {}


class Receipt(BaseModel):
    """What a step did: written last, it commits the step.

    Attributes:
        step: Name of the step.
        key: The digest of everything that decides the result: step, code, parameters, numerics and
            the results of the inputs.
        code: The version and digest of quantlib, and of each package that extends it, by name.
        parameters: What was asked for, with all defaults filled in.
        numerics: What decides the rounding of its arithmetic; empty for a step without any.
        inputs: The receipts that it read, by the name of the input.
        files: What it wrote, by name; the content lies under its digest.
        facts: Small results, by name.
        made_by: Where it ran.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_: Annotated[Literal["quantlib/receipt/2"], Field(alias="schema")] = SCHEMA
    step: Name
    key: Key
    code: dict[str, str]
    parameters: dict[str, Any]
    numerics: dict[str, Any] = {}
    inputs: dict[str, InputReference]
    files: dict[str, FileRecord]
    facts: dict[str, Any] = {}
    made_by: MadeBy = MadeBy()

    @property
    def address(self) -> str:
        """Where a store keeps the receipt, relative to it."""
        return receipt_path(self.step, self.key)

    @property
    def aside(self) -> str:
        """The folder for what a run leaves that is no result: logs, times, pages."""
        return aside_folder(self.step, self.key)

    def path(self, name: str) -> str:
        """Where a store keeps one of the step's files, relative to it."""
        if name not in self.files:
            raise KeyError(f"step {self.step} wrote no file {name!r}")
        return self.files[name].blob

    def reference(self) -> InputReference:
        """What the receipt of a step that reads this one records of it."""
        return InputReference(step=self.step, key=self.key, digest=self.digest())

    def to_json(self) -> bytes:
        """The receipt's canonical bytes."""
        return canonical_json(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    def digest(self) -> str:
        """``sha256:`` and the hexadecimal digest of :meth:`to_json`."""
        return "sha256:" + hashlib.sha256(self.to_json()).hexdigest()

    def result_digest(self) -> str:
        """The digest of what came out, wherever it ran: the keys of later steps go by it."""
        files = {name: record.sha256 for name, record in self.files.items()}
        return digest_of({"step": self.step, "key": self.key, "files": files, "facts": self.facts})

    @classmethod
    def from_json(cls, data: bytes | bytearray | str, origin: str = "receipt") -> Receipt:
        """Reads a receipt.

        Raises:
            InvalidInputError: ``data`` is no receipt of this schema.
        """
        try:
            return cls.model_validate(parse_json(data, origin))
        except ValidationError as error:
            raise InvalidInputError.one(
                origin, f"is no valid receipt: {faults_of(error)}"
            ) from None


def files_digest(files: Mapping[str, FileRecord]) -> str:
    """``sha256:`` digest over the names and digests of a model's files."""
    return digest_of([[name, record.sha256] for name, record in sorted(files.items())])


def receipt_path(step: str, key: str) -> str:
    """Where a store keeps a step's receipt, relative to it."""
    return f"steps/{step}/{key}.json"


def aside_folder(step: str, key: str) -> str:
    """The folder of what runs of a step leave beside its result, relative to the store."""
    return f"runs/{step}/{key}"


def step_key(
    step: str,
    code: Mapping[str, str],
    parameters: Mapping[str, Any],
    numerics: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> str:
    """The digest of everything that decides what a step writes.

    Args:
        step: Name of the step.
        code: Version and digest of the code, by package.
        parameters: JSON values, with all defaults filled in.
        numerics: What decides the rounding of its arithmetic.
        inputs: :meth:`Receipt.result_digest` of each input.
    """
    decided_by = {
        "step": step,
        "code": dict(code),
        "parameters": dict(parameters),
        "numerics": dict(numerics),
        "inputs": dict(inputs),
    }
    return digest_of(decided_by).removeprefix("sha256:")
