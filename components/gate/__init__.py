"""The gate step as a component."""

from components.gate.component import gate

__all__ = ["gate"]
