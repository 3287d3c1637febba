"""What passes between tasks at run time: parameter values and artifacts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipelines.ir import ParameterSpec
from quantlib.errors import InvalidInputError


@dataclass(frozen=True)
class Artifact:
    """A file that a step wrote, or only metadata, by reference."""

    name: str
    schema_title: str
    schema_version: str
    uri: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the file is on this machine."""
        return Path(self.uri.removeprefix("file://"))

    def to_json(self) -> dict[str, Any]:
        """The artifact as the executor input holds it."""
        return {
            "name": self.name,
            "type": {"schemaTitle": self.schema_title, "schemaVersion": self.schema_version},
            "uri": self.uri,
            "metadata": dict(self.metadata),
        }


@dataclass(frozen=True)
class Values:
    """Inputs or outputs of a task, by name. Every artifact is a list, mostly of one."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    artifacts: Mapping[str, tuple[Artifact, ...]] = field(default_factory=dict)


_PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
}


def convert(value: Any, spec: ParameterSpec, where: str) -> Any:
    """A value as an input parameter takes it.

    As on the cluster, a string parameter takes the text of any value, and every other type only
    its own. Whole numbers, which the compiler and the cluster pass as floats, become integers.

    Args:
        value: A JSON value.
        spec: The parameter.
        where: What to call the parameter in error messages.

    Raises:
        InvalidInputError: The value is not of the parameter's type.
    """
    if spec.literals and value not in spec.literals:
        choices = ", ".join(str(choice) or "(empty)" for choice in spec.literals)
        raise InvalidInputError.one(where, f"{value!r} is none of {choices}")
    if spec.type == "STRING":
        return to_text(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if spec.type == "NUMBER_INTEGER" and number and value == int(value):
        return int(value)
    kinds = _PYTHON_TYPES.get(spec.type)
    if kinds is None or not isinstance(value, kinds) or (kinds == (int, float) and not number):
        raise InvalidInputError.one(where, f"{value!r} is no {spec.type}")
    return value


def from_text(text: str, spec: ParameterSpec, where: str) -> Any:
    """The value of an output parameter whose file holds ``text``.

    Raises:
        InvalidInputError: The text is no value of the parameter's type.
    """
    if spec.type == "STRING":
        return text
    try:
        return convert(json.loads(text), spec, where)
    except ValueError:
        raise InvalidInputError.one(where, f"{text!r} is no {spec.type}") from None


def to_text(value: Any) -> str:
    """A value as the launcher writes it into an argv."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return format(Decimal(repr(value)).normalize(), "f")
    return json.dumps(value, separators=(",", ":"))
