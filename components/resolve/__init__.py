"""The resolve step as a component."""

from components.resolve.component import resolve

__all__ = ["resolve"]
