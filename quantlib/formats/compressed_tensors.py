"""The compressed-tensors formats: pack-quantized (weights only), int-quantized and float-quantized.

pack-quantized, as compressed_tensors/compressors/pack_quantized reads it:

| tensor | dtype | shape | content |
|---|---|---|---|
| `weight_packed` | int32 | `[out_features, in_features * bits / 32]` | codes, along the input |
| `weight_scale` | as the model | `[out_features, groups]` | |
| `weight_zero_point` | int32 | `[out_features * bits / 32, groups]` | if asymmetric; along output |
| `weight_shape` | int64 | `[2]` | out_features, in_features |

int-quantized (W8A8) and float-quantized (FP8): `weight` int8 or float8_e4m3fn
`[out_features, in_features]` and `weight_scale` `[out_features, 1]`, or `[blocks of rows, groups]`
for FP8 in blocks and `[1]` for FP8 per tensor; with static activations also `input_scale`, float32
`[1]`.

mxfp8-quantized, mxfp4-pack-quantized and nvfp4-pack-quantized: as
:mod:`quantlib.formats.stored.compressed` lists them. What attention keeps in FP8 is
:mod:`quantlib.formats.compressed_cache`'s.

Checkpoints of others, which :mod:`quantlib.formats.stored` reads, may also hold `weight_g_idx`, the
group of each column, and zero points that are not packed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quantlib.formats.base import BaseFormat, CheckpointScheme, SchemeOf
from quantlib.formats.compressed_cache import (
    EXACT_FORMAT,
    attention_groups,
    cache_config,
    read_cache,
)
from quantlib.formats.compressed_config import float_layout, group_of, read_groups
from quantlib.formats.registry import format_registry
from quantlib.schemes import (
    SCHEMES,
    Activations,
    CacheScheme,
    LinearScheme,
    WeightScheme,
    name_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from quantlib.numbers.cached import CacheScales
    from quantlib.numbers.quantized import QuantizedLinear


def input_scale_name(activations: Activations) -> str:
    """The last part of the name of what inputs are rounded by, where that is stored."""
    return "input_global_scale" if activations == "nvfp4" else "input_scale"


def _float_problem(weights: WeightScheme) -> str:
    """Why there is no layout for weights that are no whole numbers."""
    held = {
        name: WeightScheme(**one["weights"])
        for name, one in SCHEMES.items()
        if one["weights"]["type"] == "float"
    }
    for name, known in held.items():
        if known == weights.model_copy(update={"group_size": known.group_size}):
            size = known.group_size
            own = "one scale per channel" if size == -1 else f"groups of {size}"
            return f"{name} has {own}: leave group_size out"
    return f"of floating point weights it holds {', '.join(held)}, and these are none of them"


@format_registry.register("compressed-tensors")
class CompressedTensorsFormat(BaseFormat):
    """Whole numbers of 4 and 8 bits, int8 and FP8 with such activations, NVFP4, MXFP4 and MXFP8."""

    name = "compressed-tensors"
    vllm_name = "compressed-tensors"
    emulated = experts_emulated = True

    def scheme_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why the format, or vLLM reading it, cannot hold a scheme; None where they can."""
        if weights.type != "int":
            layout = float_layout(weights)
            if layout is None:
                return _float_problem(weights)
            if activations not in layout.activations:
                return f"{layout.name} weights go with activations {', '.join(layout.activations)}"
            return None
        if weights.scale != "model" or weights.block_rows != 1:
            return "whole numbers have scales of the model's dtype, for each row"
        if weights.bits not in (2, 4, 8):
            return f"vLLM and the package pack {weights.bits} bits each in its own way"
        if weights.bits == 2 and not weights.symmetric:
            return "vLLM serves 2 bits for symmetric weights only"
        if weights.group_size not in (-1, 32, 64, 128):
            return f"vLLM has no kernel for groups of {weights.group_size}"
        if weights.bits == 4 and activations in ("int8", "fp8"):
            if not weights.symmetric:
                return f"{activations} activations go with symmetric weights"
            if activations == "fp8" and weights.group_size != 128:
                return "vLLM serves 4-bit weights with FP8 activations in groups of 128 only"
            return None
        if activations not in ("none", "int8", "int8-static"):
            return f"{activations} activations go with weights of type float"
        if activations != "none" and (
            weights.bits != 8 or weights.group_size != -1 or not weights.symmetric
        ):
            return (
                f"{activations} activations go with weights of 8 bits, per channel (group_size -1) "
                "and symmetric"
            )
        if weights.bits == 8 and not weights.symmetric and weights.group_size == 32:
            return "vLLM has no kernel for asymmetric 8-bit weights in groups of 32"
        return None

    def mixture_problem(self, schemes: Collection[LinearScheme]) -> str | None:
        """None: each scheme is a group of the config."""
        return None

    def cpu_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why vLLM cannot serve the scheme on a CPU, though on a GPU; None where it can."""
        if weights.type == "float" and activations != "fp8":
            return f"vLLM has no CPU kernel for {name_of(weights, activations)}"
        if weights.bits == 4 and activations == "fp8":
            return f"vLLM has no CPU kernel for {name_of(weights, activations)}"
        if weights.bits == 2:
            return "vLLM has no CPU kernel for 2-bit weights"
        if weights.bits == 8 and activations == "none":
            if not weights.symmetric:
                return "vLLM has a kernel for asymmetric 8-bit weights alone on Hopper GPUs only"
            return "vLLM has no CPU kernel for 8-bit weights alone"
        return None

    def experts_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why vLLM cannot serve experts in a scheme that it serves otherwise; None where it can."""
        if activations in ("int8-static", "fp8-static") and weights.block_rows != -1:
            kind = activations.removesuffix("-static")
            return f"vLLM serves experts with {kind} activations per token only"
        if weights.bits == 4 and activations == "int8":
            return "vLLM reads no packed experts of four bits with int8 activations"
        if weights.type == "int" and weights.bits == 8 and not weights.symmetric:
            return "vLLM has no kernel for experts with asymmetric 8-bit weights"
        return None

    def experts_multiple(self, weights: WeightScheme, activations: Activations) -> int:
        """Of what the sides of experts' linears have to be multiples, for vLLM to read them."""
        return 256 if weights.bits == 4 and activations == "fp8" else 1

    def head_problem(self, scheme: LinearScheme, rows: int) -> str | None:
        """Why vLLM cannot read a head in a scheme that it serves otherwise; None where it can."""
        weights = scheme.weights
        if weights.block_rows > 1:
            return "vLLM reads no scales of blocks of a head's rows; use FP8 or FP8_DYNAMIC"
        if not weights.symmetric and rows % (32 // weights.bits):
            return (
                f"vLLM reads zero points of a head where {32 // weights.bits} divides the "
                f"vocabulary, {rows}; use symmetric weights"
            )
        return None

    def embeddings_problem(self, scheme: LinearScheme) -> str | None:
        """Why vLLM cannot read embeddings in a scheme that it serves otherwise."""
        weights = scheme.weights
        if weights.type != "int" or not weights.symmetric or scheme.activations != "none":
            return (
                "vLLM looks up whole numbers, symmetric and with 16-bit activations, only; use "
                "W8A16 or W4A16"
            )
        return None

    def joined(self, pieces: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a linear from those of its rows, some in each piece."""
        tensors = super().joined(pieces)
        if "weight_shape" in tensors:
            rows = sum(int(piece["weight_shape"][0]) for piece in pieces)
            tensors["weight_shape"][0] = rows
        return tensors

    def cache_problem(self) -> str | None:
        """None: it has ``kv_cache_scheme``."""
        return None

    def cache_tensors(self, scales: CacheScales) -> dict[str, Tensor]:
        """The scales of a module of attention, by the last part of their names."""
        tensors = {"k_scale": scales.keys, "v_scale": scales.values}
        return tensors if scales.queries is None else tensors | {"q_scale": scales.queries}

    def tensors(self, linear: QuantizedLinear, activations: Activations) -> dict[str, Tensor]:
        """The tensors of a linear, by the last part of their names."""
        import torch

        from quantlib.formats.packing import pack_e2m1, pack_int32

        if linear.scheme.type == "float" and linear.scheme.bits == 4:
            tensors = {"weight_packed": pack_e2m1(linear.codes), "weight_scale": linear.scales}
            if linear.overall is not None:
                tensors["weight_global_scale"] = linear.overall
            if linear.input_scale is not None:
                tensors[input_scale_name(activations)] = linear.input_scale
            return tensors
        if activations != "none" and linear.scheme.bits == 8:
            weight = linear.codes
            if linear.scheme.type == "int":
                weight = (weight.to(torch.int16) - linear.middle).to(torch.int8)
            whole = linear.scheme.block_rows == -1
            scales = linear.scales.flatten() if whole else linear.scales
            tensors = {"weight": weight, "weight_scale": scales}
            if linear.input_scale is not None:
                tensors[input_scale_name(activations)] = linear.input_scale
            return tensors
        bits = linear.scheme.bits
        tensors = {
            "weight_packed": pack_int32(linear.codes, bits),
            "weight_scale": linear.scales,
            "weight_shape": torch.tensor(linear.codes.shape),
        }
        if linear.zero_points is not None:
            tensors["weight_zero_point"] = pack_int32(linear.zero_points.t(), bits).t().contiguous()
        return tensors

    def parse(
        self,
        tensors: Mapping[str, Tensor],
        weights: WeightScheme,
        packed_zeros: bool = True,
    ) -> QuantizedLinear:
        """The inverse of :meth:`tensors`.

        Args:
            tensors: As they are stored.
            weights: Type, bits, group size and symmetry.
            packed_zeros: Whether zero points are packed; else they are int8 or int16
                ``[out_features, groups]``, and less by ``2 ** (bits - 1)``, as codes are that are
                not packed.
        """
        import torch

        from quantlib.formats.packing import unpack_e2m1, unpack_int32
        from quantlib.numbers.quantized import QuantizedLinear

        scales, zero_points = tensors["weight_scale"], None
        if weights.block_rows == -1:
            scales = scales.reshape(1, 1)
        if weights.type == "float" and weights.bits == 4:
            codes = unpack_e2m1(tensors["weight_packed"]).to(torch.float8_e4m3fn)
            overall = tensors.get("weight_global_scale")
            return QuantizedLinear(codes, scales, None, weights, overall=overall)
        middle = 1 << (weights.bits - 1)
        if not weights.symmetric:
            zero_points = tensors["weight_zero_point"]
            if packed_zeros:
                rows = tensors["weight_shape"].tolist()[0]
                zero_points = unpack_int32(zero_points.t(), weights.bits, rows).t().contiguous()
            else:
                zero_points = zero_points.to(torch.int16) + middle
        if "weight_packed" in tensors:
            columns = tensors["weight_shape"].tolist()[1]
            codes = unpack_int32(tensors["weight_packed"], weights.bits, columns)
        elif weights.type == "float":
            codes = tensors["weight"]
        else:
            codes = (tensors["weight"].to(torch.int16) + middle).to(torch.uint8)
        group_index = tensors.get("weight_g_idx")
        return QuantizedLinear(
            codes,
            scales,
            zero_points,
            weights,
            tensors.get("input_scale", tensors.get("input_global_scale")),
            group_index,
        )

    def quantization_config(self, scheme: CheckpointScheme) -> dict[str, Any]:
        """The ``quantization_config`` of config.json.

        Fused names stand among those to ignore, and among targets, too: vLLM does not know of every
        model which parts it has fused.
        """
        groups = [
            group_of(each.scheme, [*([] if number else ["Linear"]), *each.names])
            for number, each in enumerate(scheme.schemes)
        ]
        layouts = {group["format"] for group in groups} or {EXACT_FORMAT}
        groups += attention_groups(scheme.cache, scheme.attention)
        return {
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
            "ignore": [
                *scheme.exact,
                *scheme.exact_fused,
                *(rf"re:^{re.escape(name)}\." for name in scheme.exact_modules),
            ],
            "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
            **cache_config(scheme.cache),
        }

    def read_cache(self, config: Mapping[str, Any]) -> CacheScheme | None:
        """How keys and values are kept, by a ``quantization_config``; None where it is not said."""
        return read_cache(config)

    def read_schemes(self, config: Mapping[str, Any]) -> SchemeOf:
        """The inverse of :meth:`quantization_config`."""
        return read_groups(config)
