"""Whether a config says that its weights are quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QUANTIZATION_FIELDS = ("quantization_config", "compression_config")
_NO_METHOD = ("", "none", "null")


def stated_quantization(config: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The field of a config that says how its weights are quantized, and what it says.

    None where they are not: transformers and vLLM take a field that is null for none, and so are
    one without content and one whose method is none.
    """
    for field in QUANTIZATION_FIELDS:
        settings = config.get(field)
        if not settings:
            continue
        if isinstance(settings, Mapping) and "quant_method" in settings:
            method = settings["quant_method"]
            if method is None or str(method).lower() in _NO_METHOD:
                continue
        return field, settings
    return None
