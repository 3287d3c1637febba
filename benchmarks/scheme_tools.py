"""Which tool has which method for which scheme, by what names, and what it chose in ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantlib.quantizers import quantizer_registry
from quantlib.schemes import SCHEMES

GROUP_SIZE = 64
"""Of the schemes that leave it open: the largest that divides the inputs of both models."""

QUANTLIB = "quantlib"
METHODS = ("minmax", "gptq", "smoothed", "awq", "tuning")
STEPS = {"minmax": 0, "tuning": 20}
"""Of auto-round, for each block."""

AUTO_ROUND = {"W4A16": f"W4A16G{GROUP_SIZE}", "W8A16": f"W8A16G{GROUP_SIZE}", "W8A8": "INT8_W8A8"}
AUTO_ROUND |= {name: name for name in ("FP8_BLOCK", "NVFP4", "MXFP4", "MXFP8")}
"""Its names of our schemes."""

MODELOPT = {
    ("W4A16", "minmax"): "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    ("W4A16", "awq"): "INT4_AWQ_CFG",
    ("FP8_DYNAMIC", "minmax"): "FP8_PER_CHANNEL_PER_TOKEN_CFG",
}
"""What it computes without a GPU."""


def group_size_of(scheme: str) -> int | None:
    """The size of its groups where a scheme leaves it open, otherwise None."""
    return None if "group_size" in SCHEMES[scheme]["weights"] else GROUP_SIZE


def recipe_of(scheme: str, method: str) -> dict[str, Any]:
    """What quantlib is told of a cell: the sections of its recipe, but for the calibration."""
    asked = SCHEMES[scheme]
    weights = asked["weights"]
    if (size := group_size_of(scheme)) is not None:
        weights = weights | {"group_size": size}
    section = {**asked, "weights": weights, "method": method}
    recipe: dict[str, Any] = {"quantization": section, "outlier_suppression": None}
    if method == "smoothed":
        recipe["quantization"]["method"] = "gptq"
        recipe["outlier_suppression"] = {"method": "smooth_quant", "options": {"alpha": "auto"}}
    return recipe


def can(tool: str, scheme: str, method: str) -> bool:
    """Whether a tool has a method for a scheme."""
    bits = SCHEMES[scheme]["weights"]["bits"]
    match tool:
        case "llm-compressor":
            # Its scheme with static FP8 inputs has weights with one scale for a whole linear.
            known = ("minmax", "gptq", "awq") if bits == 4 else ("minmax", "gptq")
            return scheme != "FP8_STATIC" and method in known
        case "auto-round":
            return scheme in AUTO_ROUND and method in STEPS
        case "modelopt":
            return (scheme, method) in MODELOPT
    if method == "smoothed":
        return SCHEMES[scheme]["activations"] != "none"
    if method not in quantizer_registry.names():
        return False
    return bits in quantizer_registry.get_quantizer(method).get_supported_bits()


def job_of(tool: str, scheme: str, method: str) -> dict[str, Any]:
    """What the script of a tool other than quantlib is told of a cell."""
    job: dict[str, Any] = {"group_size": group_size_of(scheme)}
    match tool:
        case "llm-compressor":
            return job | {"scheme": scheme, "method": method}
        case "auto-round":
            return job | {"scheme": AUTO_ROUND[scheme], "steps": STEPS[method]}
    return job | {"scheme": MODELOPT[scheme, method]}


def rules_of(chosen: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
    """Rules of a recipe for linears by name.

    Args:
        chosen: Bits and size of groups of each.
    """
    alike: dict[tuple[int, int], list[str]] = {}
    for name, (bits, size) in chosen.items():
        alike.setdefault((bits, size), []).append(name)
    return [
        {"scheme": f"W{bits}A16", "group_size": size, "linears": sorted(names)}
        for (bits, size), names in sorted(alike.items())
    ]
