"""The placeholders in a container's argv, as Kubeflow's launcher substitutes them.

    {{$}}                                        the executor input, as JSON
    {{$.inputs.parameters['x']}}                 a value
    {{$.inputs.artifacts['x'].path}}  .uri       an input artifact
    {{$.outputs.artifacts['x'].path}}  .uri      an output artifact
    {{$.outputs.parameters['x'].output_file}}    where an output parameter is to be written

(kubeflow/pipelines, backend/src/v2/component/launcher_v2.go: getPlaceholders.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from quantlib.errors import InvalidInputError


@dataclass(frozen=True)
class Placeholder:
    """One placeholder.

    Attributes:
        group: ``inputs.parameters``, ``inputs.artifacts``, ``outputs.parameters`` or
            ``outputs.artifacts``; empty for the executor input.
        name: Name of the parameter or artifact.
        field: ``path``, ``uri`` or ``output_file``; empty for a value.
    """

    group: str = ""
    name: str = ""
    field: str = ""


Template = tuple[str | Placeholder, ...]
"""The parts of one argv string, in order."""

EXECUTOR_INPUT = Placeholder()
_FIELDS = {
    "inputs.parameters": ("",),
    "inputs.artifacts": ("path", "uri"),
    "outputs.parameters": ("output_file",),
    "outputs.artifacts": ("path", "uri"),
}
_ANY = re.compile(r"({{\$.*?}})")
_NAMED = re.compile(r"{{\$\.(\w+\.\w+)\['([^']+)'\](?:\.(\w+))?}}")


def parse_template(text: str, where: str) -> Template:
    """Splits an argv string at its placeholders.

    Args:
        text: The argv string.
        where: What to call it in error messages.

    Raises:
        InvalidInputError: It holds a placeholder that the launcher does not substitute, or one that
            can leave arguments out, which is not supported.
    """
    if text.lstrip().startswith(('{"IfPresent"', '{"Concat"')):
        raise InvalidInputError.one(where, "dsl.IfPresentPlaceholder and Concat are not supported")
    parts = (part for part in _ANY.split(text) if part)
    return tuple(_parse(part, where) if part.startswith("{{$") else part for part in parts)


def substitute(template: Template, values: Mapping[Placeholder, str]) -> str:
    """The argv string with every placeholder replaced.

    Values are not searched for placeholders again, so a recipe may hold ``{{$}}``.
    """
    return "".join(part if isinstance(part, str) else values[part] for part in template)


def _parse(text: str, where: str) -> Placeholder:
    if text == "{{$}}":
        return EXECUTOR_INPUT
    match = _NAMED.fullmatch(text)
    if match is None or (match[3] or "") not in _FIELDS.get(match[1], ()):
        raise InvalidInputError.one(where, f"unknown placeholder {text}")
    return Placeholder(match[1], match[2], match[3] or "")
