"""The fetch step as a component."""

from components.fetch.component import fetch

__all__ = ["fetch"]
