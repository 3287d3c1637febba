"""The plan step as a component."""

from components.plan.component import plan

__all__ = ["plan"]
