"""The choose step as a component."""

from components.choose.component import choose

__all__ = ["choose"]
