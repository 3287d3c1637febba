"""Grids: the values that codes can stand for, by the names of their types.

Importing this package registers the types that ship; it does not import torch.
"""

from quantlib.grids.registry import number_types
from quantlib.grids.shipped import Floats, WholeNumbers
from quantlib.grids.types import FloatType, Inputs, NumberType

__all__ = ["FloatType", "Floats", "Inputs", "NumberType", "WholeNumbers", "number_types"]
