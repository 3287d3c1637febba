"""What is wrong with a quantized checkpoint, all of it, in few lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from quantlib.checkpoint.header import TensorInfo
from quantlib.checkpoint.index import listed
from quantlib.errors import Problem

_MOST_LINES = 3
_MOST_SHOWN = 60
ORIGINAL = "give the original checkpoint"


class Faults:
    """Collects faults of several kinds.

    Attributes:
        field: The field of the config that is read, for messages.
    """

    def __init__(self, field: str) -> None:
        self.field = field
        self._found: dict[str, list[Problem]] = defaultdict(list)

    def __bool__(self) -> bool:
        return bool(self._found)

    def tensor(self, kind: str, name: str, what: str) -> None:
        """Notes a fault of a tensor; many of a kind, which have one cause, will be one line."""
        self._found[kind].append(
            Problem(name, what, "the checkpoint is damaged or of another kind")
        )

    def setting(self, path: str, what: str, remedy: str = ORIGINAL) -> None:
        """Notes a fault of the config; ``path`` is that within its field."""
        where = f"config.json: {self.field}{'.' if path else ''}{path}"
        self._found[where].append(Problem(where, what, remedy))

    def problems(self) -> list[Problem]:
        """What was found."""
        lines = []
        for found in self._found.values():
            if len(found) <= _MOST_LINES:
                lines += found
                continue
            first, *others = found
            names = listed([problem.where for problem in others])
            what = f"{first.what}, and so with {len(others)} more: {names}"
            lines.append(Problem(first.where, what, first.remedy))
        return lines


class Settings:
    """Fields of a config that are read one by one; what is not as it should be is noted."""

    def __init__(self, given: Mapping[str, Any], faults: Faults, path: str = "") -> None:
        self.given = given
        self._faults = faults
        self._path = path

    def fault(self, field: str, what: str, remedy: str = ORIGINAL) -> None:
        """Notes a fault of a field."""
        self._faults.setting(f"{self._path}{field}", what, remedy)

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Notes the fields that nobody here knows, unless their values ask for nothing."""
        for field, value in self.given.items():
            if field not in known and not is_inert(value):
                what = f"{shown(value)} is unknown, and may change what the codes stand for"
                self.fault(field, what, "remove it if it does not, else give the original")

    def choice(self, field: str, choices: Collection[Any], default: Any = None) -> Any:
        """A field's value, which has to be one of some."""
        value = self.given.get(field)
        value = default if value is None else value
        value = value.lower() if isinstance(value, str) else value
        # Of equal values True is no 1.
        if not any(value == each and type(value) is type(each) for each in choices):
            read = ", ".join(str(each) for each in choices if each is not None)
            self.fault(field, f"{shown(value)} is not read; what is: {read}")
            return next(iter(choices))
        return value

    def flag(self, field: str, default: bool) -> bool:
        """A field that is true or false."""
        return bool(self.choice(field, (True, False), default))

    def group_size(self, field: str = "group_size") -> int:
        """Columns that share a scale; -1 for all of a row."""
        value = self.given.get(field)
        if type(value) is not int or (value != -1 and value < 1):
            self.fault(field, f"{shown(value)} is no number of columns, and not -1")
            return -1
        return value

    def names(self, *fields: str) -> tuple[str, ...]:
        """The names that stand in some fields, each a list or absent."""
        found: list[str] = []
        for field in fields:
            value = self.given.get(field)
            if value is None:
                continue
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                self.fault(field, "is no list of names")
                continue
            found += value
        return tuple(found)


def is_inert(value: Any) -> bool:
    """Whether a setting asks for nothing."""
    return value is None or value is False or value in ("", [], {})


def shown(value: Any) -> str:
    """A setting's value, shortened."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 1]}…"


def is_named(module: str, names: Collection[str]) -> bool:
    """Whether a module is one of some, or within one of them."""
    parts = module.split(".")
    return any(".".join(parts[:count]) in names for count in range(1, len(parts) + 1))


def part_problem(
    faults: Faults, info: TensorInfo, dtypes: Collection[str], shape: tuple[int, ...], why: str
) -> bool:
    """Notes that a tensor has another dtype or shape than its partner asks for.

    Args:
        faults: Where to.
        info: The tensor.
        dtypes: Which ones it may have.
        shape: What it should have.
        why: What the shape follows from.

    Returns:
        Whether it has.
    """
    if info.dtype not in dtypes:
        faults.tensor("dtype", info.name, f"has dtype {info.dtype}, not {' or '.join(dtypes)}")
    elif info.shape != shape:
        what = f"has shape {list(info.shape)}, not {list(shape)} as {why}"
        faults.tensor("shape", info.name, what)
    else:
        return False
    return True
