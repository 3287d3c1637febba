"""Names of linears, as recipes give them."""

from __future__ import annotations

import re


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of ``quantization.ignore`` names a linear."""
    if pattern.startswith("re:"):
        return re.search(pattern.removeprefix("re:"), name) is not None
    return name == pattern or name.endswith(f".{pattern}")
