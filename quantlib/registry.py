"""One registry for every kind of part that a package may add."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, ClassVar, Generic, TypeVar

from quantlib.errors import UnknownNameError

Part = TypeVar("Part", bound=type)


def normalize(name: str) -> str:
    """Folds case, ``-`` and ``_``, so that ``Smooth-Quant`` finds ``smooth_quant``."""
    return name.strip().lower().replace("-", "_")


class Registry(Generic[Part]):
    """Classes by name.

    Classes are added by the decorator :meth:`register`, or by another installed package through
    an entry point of the registry's ``group``: it is loaded when the names are first asked for.

    Attributes:
        kind: What the registry holds, in words, for error messages.
        group: The entry point group that other packages add to.
    """

    _all: ClassVar[list[Registry[Any]]] = []

    def __init__(self, kind: str, group: str, remedy: str = "") -> None:
        self.kind = kind
        self.group = group
        self._remedy = remedy
        self._parts: dict[str, Part] = {}
        self._entry_points_loaded = False
        self._all.append(self)

    @classmethod
    def registered(cls) -> Iterator[type]:
        """The classes in all registries of this process."""
        for registry in cls._all:
            yield from registry._parts.values()

    def register(self, *names: str) -> Callable[[Part], Part]:
        """Adds the decorated class under ``names``.

        Raises:
            ValueError: No name was given, or one of them belongs to another class.
        """
        if not names:
            raise ValueError(f"register a {self.kind} under at least one name")

        def add(part: Part) -> Part:
            for name in map(normalize, names):
                if self._parts.get(name, part) is not part:
                    raise ValueError(f"{self.kind} {name!r} is registered already")
                self._parts[name] = part
            return part

        return add

    def get(self, name: str) -> Part:
        """The class registered under ``name``.

        Raises:
            UnknownNameError: There is none; the error lists the known names.
        """
        self._load_entry_points()
        part = self._parts.get(normalize(name))
        if part is None:
            raise UnknownNameError(self.kind, name, self._parts, self._remedy)
        return part

    def names(self) -> tuple[str, ...]:
        """Every registered name, sorted."""
        self._load_entry_points()
        return tuple(sorted(self._parts))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: str) -> bool:
        self._load_entry_points()
        return normalize(name) in self._parts

    def _load_entry_points(self) -> None:
        if self._entry_points_loaded:
            return
        self._entry_points_loaded = True
        for entry_point in entry_points(group=self.group):
            self.register(entry_point.name)(entry_point.load())
