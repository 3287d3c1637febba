"""The registry of outlier suppressors, by the name of their method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantlib.registry import Registry

if TYPE_CHECKING:
    from quantlib.outlier_suppression.base import BaseOutlierSuppressor


class OutlierSuppressionRegistry(Registry[type["BaseOutlierSuppressor"]]):
    """Suppressor classes by method."""

    def get_suppressor(self, method: str) -> type[BaseOutlierSuppressor]:
        """The suppressor class of a method.

        Raises:
            UnknownNameError: There is none; the error lists the known methods.
        """
        return self.get(method)


outlier_suppression_registry = OutlierSuppressionRegistry(
    "outlier suppression method", "quantlib.outlier_suppression"
)
