"""What a recipe asks for with all defaults filled in, as steps' keys hold it."""

from __future__ import annotations

from typing import Any

from quantlib.checks.scheme import resolve_format
from quantlib.outlier_suppression import outlier_suppression_registry
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import quantizer_registry
from quantlib.recipe import OutlierSuppressionSection


def resolved_quantization(section: QuantizationSection) -> dict[str, Any]:
    """The section as JSON, with the format that is written and the method's own defaults."""
    quantizer = quantizer_registry.get_quantizer(section.method)(section)
    return section.model_dump(mode="json") | {
        "format": resolve_format(section),
        "options": quantizer.options.model_dump(mode="json"),
    }


def resolved_suppression(section: OutlierSuppressionSection | None) -> dict[str, Any] | None:
    """The section as JSON, with the suppressor's own defaults; None for none."""
    if section is None:
        return None
    suppressor = outlier_suppression_registry.get_suppressor(section.method)(section.options)
    return section.model_dump(mode="json") | {"options": suppressor.options.model_dump(mode="json")}
