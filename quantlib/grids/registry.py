"""The registry of types of numbers."""

from __future__ import annotations

from quantlib.grids.types import NumberType
from quantlib.registry import Registry

number_types = Registry[type[NumberType]]("type of numbers", "quantlib.grids")
