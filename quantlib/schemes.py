"""How weights and activations are represented, by the names that compressed-tensors has for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantlib.recipe import AskedWeights


def _weights(kind: str, bits: int, *, symmetric: bool = True, **more: Any) -> dict[str, Any]:
    plain = {"scale": "model", "block_rows": 1}
    return {"type": kind, "bits": bits, "symmetric": symmetric, **plain, **more}


_NVFP4 = _weights("float", 4, group_size=16, scale="e4m3")
_MXFP4 = _weights("float", 4, group_size=32, scale="e8m0")
_MXFP8 = _weights("float", 8, group_size=32, scale="e8m0")
_FP8_BLOCK = _weights("float", 8, group_size=128, block_rows=128)

SCHEMES: Mapping[str, Mapping[str, Any]] = {
    "W4A16": {"weights": _weights("int", 4), "activations": "none"},
    "W4A16_ASYM": {"weights": _weights("int", 4, symmetric=False), "activations": "none"},
    "W8A16": {"weights": _weights("int", 8), "activations": "none"},
    "W8A8": {"weights": _weights("int", 8, group_size=-1), "activations": "int8"},
    "FP8_DYNAMIC": {"weights": _weights("float", 8, group_size=-1), "activations": "fp8"},
    "FP8_BLOCK": {"weights": _FP8_BLOCK, "activations": "fp8-group"},
    "NVFP4A16": {"weights": _NVFP4, "activations": "none"},
    "MXFP4A16": {"weights": _MXFP4, "activations": "none"},
    "MXFP4": {"weights": _MXFP4, "activations": "mxfp4"},
    "MXFP8": {"weights": _MXFP8, "activations": "mxfp8"},
}
"""Parts of a recipe's section ``quantization``."""


def name_of(weights: AskedWeights, activations: str) -> str:
    """What a scheme is called; of whole numbers, by the bits of weights and activations."""
    if weights.type == "float":
        own = weights.model_dump(include=set(_NVFP4))
        for name, scheme in SCHEMES.items():
            if scheme["weights"] == own and scheme["activations"] == activations:
                return name
    return f"W{weights.bits}A{16 if activations == 'none' else 8}"
