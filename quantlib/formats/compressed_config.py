"""How schemes are written in compressed-tensors' ``config_groups``, and read from them.

What attention keeps in FP8 is :mod:`quantlib.formats.compressed_cache`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantlib.errors import InvalidInputError
from quantlib.formats.base import SchemeOf
from quantlib.formats.compressed_cache import is_of_attention
from quantlib.schemes import Activations, LinearScheme, ScaleType, WeightScheme


@dataclass(frozen=True)
class FloatLayout:
    """How floating point weights lie, and what goes with them.

    Attributes:
        name: Of the format, as compressed-tensors has it.
        strategy: What shares a scale.
        activations: What inputs may be rounded to.
    """

    name: str
    strategy: str
    activations: tuple[Activations, ...]


_FLOATS = {
    (8, -1, "model", 1): FloatLayout("float-quantized", "channel", ("fp8", "fp8-static")),
    (8, -1, "model", -1): FloatLayout("float-quantized", "tensor", ("fp8-static",)),
    (8, 128, "model", 128): FloatLayout("float-quantized", "block", ("fp8-group",)),
    (8, 32, "e8m0", 1): FloatLayout("mxfp8-quantized", "group", ("mxfp8",)),
    (4, 32, "e8m0", 1): FloatLayout("mxfp4-pack-quantized", "group", ("none", "mxfp4")),
    (4, 16, "e4m3", 1): FloatLayout("nvfp4-pack-quantized", "tensor_group", ("none", "nvfp4")),
}
"""By bits, group size, kind of scales, and rows that share one."""


_SCALE_DTYPES: dict[ScaleType, str] = {"e4m3": "torch.float8_e4m3fn", "e8m0": "torch.uint8"}


def _of_32(bits: int) -> dict[str, Any]:
    powers = dict.fromkeys(("scale_dtype", "zp_dtype"), _SCALE_DTYPES["e8m0"])
    return {"num_bits": bits, "type": "float", "strategy": "group", "group_size": 32, **powers}


_NVFP4 = {
    "num_bits": 4,
    "type": "float",
    "strategy": "tensor_group",
    "group_size": 16,
    "dynamic": "local",
    "observer": "static_minmax",
    **dict.fromkeys(("scale_dtype", "zp_dtype"), _SCALE_DTYPES["e4m3"]),
}


_ACTIVATIONS: dict[Activations, dict[str, Any]] = {
    "int8": {"num_bits": 8, "type": "int", "strategy": "token"},
    "int8-static": {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False},
    "fp8": {"num_bits": 8, "type": "float", "strategy": "token"},
    "fp8-static": {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False},
    "nvfp4": _NVFP4,
    "fp8-group": {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 128},
    "mxfp4": _of_32(4),
    "mxfp8": _of_32(8),
}


_IDLE = ("observer", "zp_dtype")
"""Fields that say nothing of what symmetric inputs become."""


def activations_of(arguments: Mapping[str, Any]) -> Activations:
    """What a group's ``input_activations`` stand for.

    Raises:
        InvalidInputError: For nothing that is written here.
    """
    for name, ours in _ACTIVATIONS.items():
        wanted = {"dynamic": True} | ours
        if all(arguments.get(field) == wanted[field] for field in wanted if field not in _IDLE):
            return name
    raise InvalidInputError.one(
        "config.json: quantization_config: input_activations",
        f"{dict(arguments)} is none of {', '.join(_ACTIVATIONS)}",
    )


def float_layout(weights: WeightScheme) -> FloatLayout | None:
    """How floating point weights lie; None where nothing holds them, or they are none."""
    key = (weights.bits, weights.group_size, weights.scale, weights.block_rows)
    return _FLOATS.get(key) if weights.type == "float" and weights.symmetric else None


def group_of(scheme: LinearScheme, targets: Sequence[str]) -> dict[str, Any]:
    """The group of a scheme: how its numbers lie, and which modules it is for."""
    return {
        "targets": list(targets),
        "format": _layout(scheme),
        "weights": _weights(scheme.weights),
        "input_activations": _input_activations(scheme.activations),
        "output_activations": None,
    }


def read_groups(config: Mapping[str, Any]) -> SchemeOf:
    """The scheme of each linear by a ``quantization_config``, whose first group is of the rest."""
    groups = [each for each in config["config_groups"].values() if not is_of_attention(each)]
    if not groups:
        return lambda _name: None
    rest, *others = map(_read_group, groups)
    named = [(_matcher(targets), scheme) for targets, scheme in others]
    ignored = _matcher(config["ignore"])

    def scheme_of(name: str) -> LinearScheme | None:
        if ignored(name):
            return None
        return next((scheme for fits, scheme in named if fits(name)), rest[1])

    return scheme_of


def _read_group(group: Mapping[str, Any]) -> tuple[Sequence[str], LinearScheme]:
    """The targets of a group and their scheme."""
    weights = group["weights"]
    scales = {dtype: scale for scale, dtype in _SCALE_DTYPES.items()}
    high = -1 if weights["strategy"] == "tensor" else 1
    block = weights.get("block_structure") or [high, weights["group_size"] or -1]
    scheme = WeightScheme(
        type=weights["type"],
        bits=weights["num_bits"],
        group_size=block[1],
        symmetric=weights["symmetric"],
        scale=scales.get(weights.get("scale_dtype"), "model"),
        block_rows=block[0],
    )
    inputs = group["input_activations"]
    activations = activations_of(inputs) if inputs else "none"
    return group["targets"], LinearScheme(weights=scheme, activations=activations)


def _matcher(targets: Sequence[str]) -> Callable[[str], bool]:
    """Whether one of some targets is for the module of a name."""
    names = {target for target in targets if not target.startswith("re:")}
    patterns = [re.compile(target[3:]) for target in targets if target not in names]
    return lambda name: name in names or any(pattern.match(name) for pattern in patterns)


def _layout(scheme: LinearScheme) -> str:
    """How a scheme's numbers lie, as compressed-tensors has it."""
    if (floats := float_layout(scheme.weights)) is not None:
        return floats.name
    packed = scheme.activations == "none" or scheme.weights.bits < 8
    return "pack-quantized" if packed else "int-quantized"


def _input_activations(activations: Activations) -> dict[str, Any] | None:
    if activations == "none":
        return None
    return {"dynamic": True, "symmetric": True, **_ACTIVATIONS[activations]}


def _weights(weights: WeightScheme) -> dict[str, Any]:
    """The arguments of quantized weights, as compressed-tensors has them."""
    floats = float_layout(weights)
    in_groups = weights.group_size != -1 and weights.block_rows == 1
    arguments: dict[str, Any] = {
        "num_bits": weights.bits,
        "type": weights.type,
        "strategy": floats.strategy if floats else ("group" if in_groups else "channel"),
        "group_size": weights.group_size if in_groups else None,
        "symmetric": weights.symmetric,
        "dynamic": False,
    }
    if weights.block_rows > 1:
        arguments["block_structure"] = [weights.block_rows, weights.group_size]
    if (dtype := _SCALE_DTYPES.get(weights.scale)) is not None:
        arguments |= {"scale_dtype": dtype, "zp_dtype": dtype}
    return arguments
