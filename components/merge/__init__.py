"""The merge step as a component."""

from components.merge.component import merge

__all__ = ["merge"]
