"""What pydantic finds wrong with a file of ours, in a line."""

from __future__ import annotations

from pydantic import ValidationError

_SHOWN = 3


def faults_of(error: ValidationError) -> str:
    """The first faults, each with the path of its field; the others are counted."""
    faults = [
        ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"])))
        for fault in error.errors(include_url=False)
    ]
    more = len(faults) - _SHOWN
    return "; ".join(faults[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
