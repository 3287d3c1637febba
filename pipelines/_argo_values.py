"""Argo's tags: what stands in a workflow for a value that is known only at run time.

``{{name}}`` is replaced by the text of a variable, ``{{=expression}}`` by what an expression in
expr-lang gives. Both are replaced wherever they stand, in texts that are meant as they are too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipelines.expressions import Cast, Expression, Not, Operation, Parameter
from pipelines.expressions import Constant as Literal
from pipelines.ir import Constant, DagInput, ParameterSpec, TaskOutput
from pipelines.values import to_text
from quantlib.errors import InvalidInputError

Source = Constant | DagInput | TaskOutput


def plain(text: str, where: str) -> str:
    """A text that Argo leaves as it is.

    Raises:
        InvalidInputError: It holds what Argo would take for a tag.
    """
    if "{{" in text:
        raise InvalidInputError.one(where, f"holds {{{{, which Argo would replace: {text!r}")
    return text


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not empty."""
    return {name: value for name, value in fields.items() if value}


def input_tag(name: str) -> str:
    """The text of an input parameter of the template."""
    return f"{{{{inputs.parameters.{name}}}}}"


def source_tag(source: Source, where: str) -> str:
    """The text of a value that a task is given."""
    match source:
        case Constant(value):
            return plain(to_text(value), where)
        case DagInput(name):
            return input_tag(name)
        case TaskOutput(task, name):
            return f"{{{{tasks.{task}.outputs.parameters.{name}}}}}"


def json_tag(name: str, spec: ParameterSpec) -> str:
    """An input parameter of the template as JSON.

    Argo's parameters are texts: that of anything but a string is JSON already.
    """
    return (
        f"{{{{=toJson(inputs.parameters['{name}'])}}}}"
        if spec.type == "STRING"
        else (input_tag(name))
    )


def condition_tag(
    condition: Expression,
    sources: Mapping[str, Source],
    specs: Mapping[str, ParameterSpec],
    where: str,
) -> str:
    """A condition as an expression that gives ``true`` or ``false``.

    Args:
        condition: The condition of a task.
        sources: What the task's parameters are given.
        specs: The task's parameters.
        where: What to call the task in error messages.

    Raises:
        InvalidInputError: It compares what has no counterpart in Argo.
    """
    return f"{{{{={_expression(condition, sources, specs, where)}}}}}"


def _expression(
    expression: Expression,
    sources: Mapping[str, Source],
    specs: Mapping[str, ParameterSpec],
    where: str,
) -> str:
    def inner(operand: Expression) -> str:
        text = _expression(operand, sources, specs, where)
        return f"({text})" if isinstance(operand, Operation) else text

    match expression:
        case Literal(value):
            return _literal(value, where)
        case Parameter(name):
            return _typed(name, sources[name], specs[name], where)
        case Cast("int", operand):
            return f"asInt({inner(operand)})"
        case Cast(_, operand):
            return f"asFloat({inner(operand)})"
        case Not(operand):
            return f"!{inner(operand)}"
        case Operation(symbol, left, right):
            return f"{inner(left)} {symbol} {inner(right)}"


def _typed(name: str, source: Source, spec: ParameterSpec, where: str) -> str:
    match source:
        case Constant(value):
            return _literal(value, where)
        case DagInput(given):
            text = f"inputs.parameters['{given}']"
        case TaskOutput(task, output):
            text = f"tasks['{task}'].outputs.parameters['{output}']"
    match spec.type:
        case "STRING":
            return text
        case "NUMBER_INTEGER" | "NUMBER_DOUBLE":
            return f"asFloat({text})"
        case "BOOLEAN":
            return f"({text} == 'true')"
    raise InvalidInputError.one(where, f"its condition reads {name}, which is a {spec.type}")


def _literal(value: Any, where: str) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    if any(mark in value for mark in ("'", "\\", "{{", "}}")):
        what = f"its condition compares with {value!r}, which Argo's expressions cannot hold"
        raise InvalidInputError.one(where, what)
    return f"'{value}'"
