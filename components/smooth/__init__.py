"""The smooth step as a component."""

from components.smooth.component import smooth

__all__ = ["smooth"]
