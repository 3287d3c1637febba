"""The quantize step as a component."""

from components.quantize.component import quantize

__all__ = ["quantize"]
