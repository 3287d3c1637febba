"""The tasks step as a component."""

from components.tasks.component import tasks

__all__ = ["tasks"]
