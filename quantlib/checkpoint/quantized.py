"""Whether weights are quantized, by what the config and the names of the tensors say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

QUANTIZATION_FIELDS = ("quantization_config", "compression_config")
_NO_METHOD = ("", "none", "null")


def stated_quantization(config: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The field of a config that says how its weights are quantized, and what it says.

    None where they are not: transformers and vLLM take a field that is null for none, and so are
    one without content and one whose method is none. A wrapper may say it of its language model:
    ``text_config.quantization_config``.
    """
    text = config.get("text_config")
    for where, part in (("", config), ("text_config.", text if isinstance(text, Mapping) else {})):
        for field in QUANTIZATION_FIELDS:
            settings = part.get(field)
            if not settings:
                continue
            if isinstance(settings, Mapping) and "quant_method" in settings:
                method = settings["quant_method"]
                if method is None or str(method).lower() in _NO_METHOD:
                    continue
            return where + field, settings
    return None


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that says nothing of quantization, nor of that of its language model."""
    plain = {field: value for field, value in config.items() if field not in QUANTIZATION_FIELDS}
    text = plain.get("text_config")
    if isinstance(text, Mapping):
        plain["text_config"] = {
            field: value for field, value in text.items() if field not in QUANTIZATION_FIELDS
        }
    return plain


SCALES = (".weight_scale", ".scales")
"""What every format adds to a quantized linear."""


def quantized_modules(tensors: Iterable[str]) -> set[str]:
    """Full names of the linears that a checkpoint holds codes of.

    Args:
        tensors: Names of its tensors.
    """
    return {name.rpartition(".")[0] for name in tensors if name.endswith(SCALES)}
