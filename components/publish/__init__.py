"""The publish step as a component."""

from components.publish.component import publish

__all__ = ["publish"]
