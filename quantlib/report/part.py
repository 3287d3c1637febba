"""What the parts of a report have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A closed, immutable part of a report.

    A figure that is no finite number (the perplexity of a checkpoint that is broken) is written as
    the string ``NaN`` or ``Infinity``, which JSON can hold.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        protected_namespaces=(),
        ser_json_inf_nan="strings",
    )
