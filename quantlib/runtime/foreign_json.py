"""JSON that somebody else wrote, read without trusting it.

Python's own reader answers deep nesting with a RecursionError, keeps the last of two equal keys,
takes NaN and lone surrogates, and passes them on to code that does not expect them. This one says
in a line what is wrong.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from quantlib.errors import InvalidInputError

_DIGITS = 40
"""Of a whole number at most. Tokenizers write 10**30 where they mean no limit."""

_DEPTH = 64
"""How deeply values may lie in one another."""


class _RefusedError(ValueError):
    pass


def parse_json(
    data: bytes | bytearray | str, where: str, remedy: str = "", *, infinite: bool = False
) -> Any:
    """The value in a JSON document.

    Args:
        data: The document, in UTF-8.
        where: Its address, for people.
        remedy: What to do where it is refused.
        infinite: Whether it may hold ``Infinity``, which is no JSON but stands in configs on the
            hub: Python writes and reads it.

    Raises:
        InvalidInputError: It is no JSON, is nested too deeply, names a key twice, or holds numbers
            or characters that are none.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_mapping,
            parse_int=_whole,
            parse_float=_real,
            parse_constant=_infinity if infinite else _constant,
        )
        _require_plain(value)
        return value
    except UnicodeDecodeError:
        what = "is not UTF-8"
    except _RefusedError as error:
        what = f"is refused: it {error}"
    except json.JSONDecodeError as error:
        what = f"is not JSON: {error}"
    except RecursionError:
        what = "is refused: it is nested too deeply"
    raise InvalidInputError.one(where, what, remedy) from None


def parse_mapping(
    data: bytes | bytearray | str, where: str, remedy: str = "", *, infinite: bool = False
) -> dict[str, Any]:
    """The mapping in a JSON document; see :func:`parse_json`.

    Raises:
        InvalidInputError: It holds something else, or :func:`parse_json` refuses it.
    """
    value = parse_json(data, where, remedy, infinite=infinite)
    if not isinstance(value, dict):
        raise InvalidInputError.one(where, "does not hold a mapping", remedy)
    return value


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _RefusedError(f"has the key {twice[:80]!r} twice")
    return value


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise _RefusedError(f"holds a number of {len(digits)} digits, {digits[:12]}…")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _RefusedError(f"holds the number {digits[:20]}, which is out of range")
    return value


def _constant(name: str) -> NoReturn:
    raise _RefusedError(f"holds {name}, which is no number of JSON")


def _infinity(name: str) -> float:
    return _constant(name) if name == "NaN" else float(name)


def _require_plain(value: Any) -> None:
    waiting = [(value, 0)]
    while waiting:
        current, depth = waiting.pop()
        if depth > _DEPTH:
            raise RecursionError
        match current:
            case str() as text:
                if not text.isascii() and any(
                    "\ud800" <= character <= "\udfff" for character in text
                ):
                    raise _RefusedError("holds half of a surrogate pair, which is no character")
            case dict() as mapping:
                waiting += [(each, depth + 1) for pair in mapping.items() for each in pair]
            case list() as values:
                waiting += [(each, depth + 1) for each in values]
