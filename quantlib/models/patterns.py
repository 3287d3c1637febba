"""Names of linears, as recipes give them."""

from __future__ import annotations

import re
from collections.abc import Iterable


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of ``quantization.ignore`` names a linear."""
    if pattern.startswith("re:"):
        return re.search(pattern.removeprefix("re:"), name) is not None
    return name == pattern or name.endswith(f".{pattern}")


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Whether one of some patterns names a linear."""
    return any(matches(pattern, name) for pattern in patterns)
