"""The validate step as a component."""

from components.validate.component import validate

__all__ = ["validate"]
