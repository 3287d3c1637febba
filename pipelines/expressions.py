"""The conditions of a compiled pipeline.

Kubeflow compiles ``dsl.If`` to an expression in CEL, the Common Expression Language. The compiler
emits a small part of the language, and that part is what is read here: comparisons, ``&&``, ``||``,
``!``, parentheses, literals, ``int()``, ``double()`` and ``inputs.parameter_values['x']``.

    >>> condition = parse_condition("inputs.parameter_values['verdict'] == 'passed'")
    >>> evaluate(condition, {"verdict": "passed"})
    True
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quantlib.errors import InvalidInputError


@dataclass(frozen=True)
class Constant:
    """A string, number or truth value."""

    value: str | int | float | bool


@dataclass(frozen=True)
class Parameter:
    """The value of one of the task's input parameters."""

    name: str


@dataclass(frozen=True)
class Cast:
    """``int(operand)`` or ``double(operand)``, which the compiler puts around numbers."""

    function: str
    operand: Expression


@dataclass(frozen=True)
class Not:
    """``!operand``."""

    operand: Expression


@dataclass(frozen=True)
class Operation:
    """``left symbol right``."""

    symbol: str
    left: Expression
    right: Expression


Expression = Constant | Parameter | Cast | Not | Operation

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CASTS: dict[str, Callable[[Any], int | float]] = {"int": int, "double": float}
_TOKEN = re.compile(
    r"""\s*(?:
        inputs\.parameter_values\['(?P<parameter>[^'\\]+)'\]
      | (?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
      | '(?P<single>[^'\\]*)' | "(?P<double>[^"\\]*)"
      | (?P<word>true|false|int|double)\b
      | (?P<symbol>&&|\|\||==|!=|<=|>=|[<>!()])
    )""",
    re.VERBOSE,
)


def parse_condition(text: str, where: str = "condition") -> Expression:
    """Parses a condition.

    Args:
        text: The condition.
        where: What to call it in error messages.

    Raises:
        InvalidInputError: It holds something that the compiler of kfp does not emit.
    """
    return _Parser(text, where).parse()


def evaluate(expression: Expression, parameters: Mapping[str, Any]) -> Any:
    """The value of an expression.

    Args:
        expression: What :func:`parse_condition` returned.
        parameters: The input parameters of the task that the condition belongs to.

    Raises:
        InvalidInputError: Values of different types are compared, or a parameter has no value.
    """
    match expression:
        case Constant(value):
            return value
        case Parameter(name):
            if parameters.get(name) is None:
                raise InvalidInputError.one(f"condition on {name}", "the parameter has no value")
            return parameters[name]
        case Cast(function, operand):
            return _CASTS[function](evaluate(operand, parameters))
        case Not(operand):
            return not _truth(operand, parameters)
        case Operation("&&", left, right):
            return _truth(left, parameters) and _truth(right, parameters)
        case Operation("||", left, right):
            return _truth(left, parameters) or _truth(right, parameters)
        case Operation(symbol, left, right):
            values = evaluate(left, parameters), evaluate(right, parameters)
            if _kind(values[0]) != _kind(values[1]):
                raise InvalidInputError.one("condition", f"{values[0]!r} {symbol} {values[1]!r}")
            return _COMPARISONS[symbol](*values)


def parameter_names(expression: Expression) -> Iterator[str]:
    """The input parameters that an expression reads."""
    match expression:
        case Parameter(name):
            yield name
        case Cast(_, operand) | Not(operand):
            yield from parameter_names(operand)
        case Operation(_, left, right):
            yield from parameter_names(left)
            yield from parameter_names(right)


def _truth(expression: Expression, parameters: Mapping[str, Any]) -> bool:
    value = evaluate(expression, parameters)
    if not isinstance(value, bool):
        raise InvalidInputError.one("condition", f"{value!r} is no truth value")
    return value


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)


class _Parser:
    """Recursive descent: || binds loosest, then &&, then one comparison, then !."""

    def __init__(self, text: str, where: str) -> None:
        self._text = text
        self._where = where
        self._tokens = self._tokenize()
        self._next = 0

    def parse(self) -> Expression:
        expression = self._either()
        if self._next < len(self._tokens):
            raise self._error("goes on where it should end")
        return expression

    def _tokenize(self) -> list[Expression | str]:
        tokens: list[Expression | str] = []
        position = 0
        end = len(self._text.rstrip())
        while position < end:
            match = _TOKEN.match(self._text, position)
            if match is None:
                raise self._error(f"cannot be read at {self._text[position:]!r}")
            position = match.end()
            kind = match.lastgroup or ""
            text = match[kind]
            if kind == "parameter":
                tokens.append(Parameter(text))
            elif kind == "number":
                tokens.append(Constant(int(text) if text.lstrip("-").isdigit() else float(text)))
            elif kind in ("single", "double"):
                tokens.append(Constant(text))
            elif text in ("true", "false"):
                tokens.append(Constant(text == "true"))
            else:
                tokens.append(text)
        return tokens

    def _either(self) -> Expression:
        left = self._both()
        while self._take("||"):
            left = Operation("||", left, self._both())
        return left

    def _both(self) -> Expression:
        left = self._comparison()
        while self._take("&&"):
            left = Operation("&&", left, self._comparison())
        return left

    def _comparison(self) -> Expression:
        left = self._unary()
        symbol = self._take(*_COMPARISONS)
        return Operation(symbol, left, self._unary()) if symbol else left

    def _unary(self) -> Expression:
        if self._take("!"):
            return Not(self._unary())
        if function := self._take(*_CASTS):
            if not self._take("("):
                raise self._error(f"lacks ( after {function}")
            return Cast(function, self._rest_of_group())
        if self._take("("):
            return self._rest_of_group()
        if self._next == len(self._tokens):
            raise self._error("ends too early")
        token = self._tokens[self._next]
        if isinstance(token, str):
            raise self._error(f"has {token!r} where a value should be")
        self._next += 1
        return token

    def _rest_of_group(self) -> Expression:
        expression = self._either()
        if not self._take(")"):
            raise self._error("lacks a )")
        return expression

    def _take(self, *symbols: str) -> str:
        if self._next < len(self._tokens):
            token = self._tokens[self._next]
            if isinstance(token, str) and token in symbols:
                self._next += 1
                return token
        return ""

    def _error(self, what: str) -> InvalidInputError:
        return InvalidInputError.one(self._where, f"{self._text!r} {what}")
