"""The registry of quantizers, by the name of their method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantlib.registry import Registry

if TYPE_CHECKING:
    from quantlib.quantizers.base import BaseQuantizer


class QuantizerRegistry(Registry[type["BaseQuantizer"]]):
    """Quantizer classes by method."""

    def get_quantizer(self, method: str) -> type[BaseQuantizer]:
        """The quantizer class of a method.

        Raises:
            UnknownNameError: There is none; the error lists the known methods.
        """
        return self.get(method)


quantizer_registry = QuantizerRegistry("quantization method", "quantlib.quantizers")
