"""What a type of numbers has to offer. Imports no torch: recipes are checked against it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from quantlib.grids.values import Grid


@dataclass(frozen=True)
class Inputs:
    """What the inputs of linears are rounded to when the model is served.

    Attributes:
        words: For reports: ``MXFP4, one dynamic scale per token and 32 channels``.
        row: How a token is represented: as the row of a weight, whose fields these are.
        static: Whether a number of each linear is found in calibration.
    """

    words: str
    row: Mapping[str, Any]
    static: bool = False


class NumberType(ABC):
    """A type of numbers: what ``weights.type`` of a recipe names.

    Attributes:
        bits: Those that codes can have.
        schemes: Schemes with such weights: parts of a recipe's section ``quantization`` by their
            names.
        inputs: What inputs can be rounded to in such numbers, by the names that ``activations`` of
            a recipe has for it.
    """

    bits: ClassVar[tuple[int, ...]]
    schemes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    inputs: ClassVar[Mapping[str, Inputs]] = {}

    @classmethod
    @abstractmethod
    def grid(cls, bits: int, symmetric: bool) -> Grid:
        """The values of codes of so many bits.

        Args:
            bits: One of :attr:`bits`.
            symmetric: Whether there are no zero points.
        """

    @classmethod
    def range_factors(cls, bits: int) -> tuple[float, ...]:
        """Factors on the range of a group that a search for its scale tries; 1 is the first.

        Where scales are powers of two, the search tries the neighbours of one in their place.
        """
        return (1.0,)


class FloatType(NumberType):
    """Floating point numbers of one layout, all finite.

    Attributes:
        lowest: The exponent of the smallest normal value.
        mantissa: Bits of a mantissa.
        largest: The largest value.
    """

    lowest: ClassVar[int]
    mantissa: ClassVar[int]
    largest: ClassVar[float]

    @classmethod
    def grid(cls, bits: int, symmetric: bool) -> Grid:
        """That of the layout; there are no zero points."""
        from quantlib.grids.values import FloatGrid

        return FloatGrid(cls.lowest, cls.mantissa, cls.largest)
