"""The measure step as a component."""

from components.measure.component import measure

__all__ = ["measure"]
