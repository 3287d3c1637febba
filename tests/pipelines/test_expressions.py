"""The conditions of compiled pipelines."""

from __future__ import annotations

import pytest

from pipelines.expressions import evaluate, parameter_names, parse_condition
from quantlib.errors import InvalidInputError

X = "inputs.parameter_values['x']"
Y = "inputs.parameter_values['pipelinechannel--a-b']"


@pytest.mark.parametrize(
    ("text", "parameters", "expected"),
    [
        (f"{X} == 'passed'", {"x": "passed"}, True),
        (f"{X} == 'passed'", {"x": "failed"}, False),
        (f"!({X} == 'passed')", {"x": "failed"}, True),
        (f'{X} != "passed"', {"x": "passed"}, False),
        (f"int({X}) > 3", {"x": 3.0}, False),
        (f"int({X}) >= 3", {"x": 3}, True),
        (f"{X} < -1.5e-1", {"x": -0.2}, True),
        (f"double(int({X})) <= 2.5", {"x": 2}, True),
        (f"{X} == true", {"x": False}, False),
        (f"{X} == 'a' && {Y} == 'b'", {"x": "a", "pipelinechannel--a-b": "b"}, True),
        # && binds tighter than ||, and parentheses tighter than both
        ("true || false && false", {}, True),
        ("(true || false) && false", {}, False),
        ("!true || true", {}, True),
        # the right side is not looked at where the left one decides
        (f"false && {X} == 'a'", {}, False),
        (f"true || {X} == 'a'", {}, True),
        (f"{X} == 'a == b && (c)'", {"x": "a == b && (c)"}, True),
    ],
)
def test_evaluates(text: str, parameters: dict[str, object], expected: bool) -> None:
    assert evaluate(parse_condition(text), parameters) is expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{X} ==",
        f"({X} == 'a'",
        f"{X} == 'a')",
        f"{X} == 'a' 'b'",
        f"size({X}) == 1",
        "int 3 == 3",
        "inputs.artifacts['x'] == 'a'",
        f"{X}.startsWith('a')",
        f"{X} == 'it\\'s'",
        f"{X} == 'a' & true",
        "== 'a'",
    ],
)
def test_refuses_what_the_compiler_does_not_emit(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"root\.condition"):
        parse_condition(text, "root.condition")


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        (f"{X} == 'a'", {}),
        (f"{X} == 'a'", {"x": 1}),
        (f"{X} == 1", {"x": True}),
        (f"!{X}", {"x": "a"}),
        (f"{X} && true", {"x": 1}),
    ],
)
def test_refuses_values_that_do_not_compare(text: str, parameters: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        evaluate(parse_condition(text), parameters)


def test_names_the_parameters() -> None:
    expression = parse_condition(f"!({X} == 'a') || int({Y}) > 2 && {X} == 'b'")
    assert set(parameter_names(expression)) == {"x", "pipelinechannel--a-b"}
