"""A part of a recipe, or of another document that is closed: unknown keys are refused."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A closed, immutable part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
