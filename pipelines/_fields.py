"""Closed reading of nested mappings: what is not read is refused, with its path."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any

from quantlib.errors import InvalidInputError


class Fields:
    """The fields of one mapping.

    Used as a context manager: on leaving, a field that nobody asked for is refused.

    Attributes:
        origin: The file that the mapping is in.
        path: Where it is in the file, such as ``root.dag``; empty for the top.
    """

    def __init__(self, value: Any, origin: str, path: str = "") -> None:
        self.origin = origin
        self.path = path
        if not isinstance(value, dict):
            raise self.error("is no mapping")
        self._values: dict[str, Any] = dict(value)

    def __enter__(self) -> Fields:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None and self._values:
            name = next(iter(self._values))
            raise self.error_of(name, "is not supported")

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str, default: str | None = None) -> str:
        """A string; required unless there is a default."""
        return self._typed(name, str, default)

    def boolean(self, name: str) -> bool:
        """A truth value, false by default."""
        return self._typed(name, bool, False)

    def number(self, name: str, default: float) -> float:
        """A number."""
        return float(self._typed(name, (int, float), default))

    def seconds(self, name: str) -> float:
        """A duration such as ``60s``, 0 by default."""
        text = self.text(name, "0s")
        try:
            return float(text.removesuffix("s"))
        except ValueError:
            raise self.error_of(name, f"is no duration: {text!r}") from None

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings, empty by default."""
        values = self._typed(name, list, [])
        if not all(isinstance(value, str) for value in values):
            raise self.error_of(name, "is no list of strings")
        return tuple(values)

    def strings(self, name: str) -> dict[str, str]:
        """A mapping of strings, empty by default."""
        values = self._typed(name, dict, {})
        if not all(isinstance(value, str) for value in values.values()):
            raise self.error_of(name, "is no mapping of strings")
        return values

    def value(self, name: str) -> Any:
        """A value of any type; None where it is missing."""
        return self._values.pop(name, None)

    def fields(self, name: str) -> Fields:
        """A mapping, empty by default."""
        return self._nested(self._values.pop(name, {}), name)

    def entries(self, name: str) -> Iterator[tuple[str, Fields]]:
        """The entries of a mapping of mappings, by name."""
        for key, value in self._typed(name, dict, {}).items():
            yield key, self._nested(value, f"{name}.{key}")

    def elements(self, name: str) -> Iterator[Fields]:
        """The elements of a list of mappings."""
        for index, value in enumerate(self._typed(name, list, [])):
            yield self._nested(value, f"{name}[{index}]")

    def where(self, name: str = "") -> str:
        """The place of a field, or of the whole mapping, for an error message."""
        path = ".".join(part for part in (self.path, name) if part)
        return f"{self.origin}: {path}" if path else self.origin

    def error(self, what: str, remedy: str = "") -> InvalidInputError:
        """The error that something is wrong with the mapping."""
        return InvalidInputError.one(self.where(), what, remedy)

    def error_of(self, name: str, what: str, remedy: str = "") -> InvalidInputError:
        """The error that something is wrong with one field."""
        return InvalidInputError.one(self.where(name), what, remedy)

    def _nested(self, value: Any, name: str) -> Fields:
        path = f"{self.path}.{name}" if self.path else name
        return Fields(value, self.origin, path)

    def _typed(self, name: str, kind: type | tuple[type, ...], default: Any) -> Any:
        value = self._values.pop(name, default)
        if value is None:
            raise self.error(f"{name} is missing")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error_of(name, f"has the wrong type: {value!r}")
        return value
