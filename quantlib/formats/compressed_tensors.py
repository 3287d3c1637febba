"""The compressed-tensors formats: pack-quantized (weights only), int-quantized and float-quantized.

pack-quantized, as compressed_tensors/compressors/pack_quantized reads it:

| tensor | dtype | shape | content |
|---|---|---|---|
| `weight_packed` | int32 | `[out_features, in_features * bits / 32]` | codes, along the input |
| `weight_scale` | as the model | `[out_features, groups]` | |
| `weight_zero_point` | int32 | `[out_features * bits / 32, groups]` | if asymmetric; along output |
| `weight_shape` | int64 | `[2]` | out_features, in_features |

int-quantized (W8A8) and float-quantized (FP8): `weight` int8 or float8_e4m3fn
`[out_features, in_features]` and `weight_scale` `[out_features, 1]`; with static activations also
`input_scale`, float32 `[1]`.

Checkpoints of others, which :mod:`quantlib.formats.stored` reads, may also hold `weight_g_idx`, the
group of each column, and zero points that are not packed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from quantlib.formats.base import BaseFormat, CheckpointScheme
from quantlib.formats.registry import format_registry
from quantlib.recipe import Activations, WeightScheme

if TYPE_CHECKING:
    from torch import Tensor

    from quantlib.numbers.quantized import QuantizedLinear


_LAYOUTS: dict[Activations, str] = {
    "none": "pack-quantized",
    "int8": "int-quantized",
    "int8-static": "int-quantized",
    "fp8": "float-quantized",
}


@format_registry.register("compressed-tensors")
class CompressedTensorsFormat(BaseFormat):
    """Weights of 4 and 8 bits, symmetric or not; int8 or FP8 weights with such activations."""

    name = "compressed-tensors"
    vllm_name = "compressed-tensors"

    def scheme_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why the format, or vLLM reading it, cannot hold a scheme; None where they can."""
        if weights.bits not in (4, 8):
            return f"vLLM serves it for 4 and 8 bits, not {weights.bits}"
        if activations != "none" and (
            weights.bits != 8 or weights.group_size != -1 or not weights.symmetric
        ):
            return (
                f"{activations} activations go with weights of 8 bits, per channel (group_size -1) "
                "and symmetric"
            )
        if weights.bits == 8 and not weights.symmetric and weights.group_size == 32:
            return "vLLM has no kernel for asymmetric 8-bit weights in groups of 32"
        if (weights.type == "float") != (activations == "fp8"):
            return "weights of type float go with fp8 activations, and with no others"
        return None

    def cpu_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why vLLM cannot serve the scheme on a CPU, though on a GPU; None where it can."""
        if weights.bits == 8 and activations == "none":
            if not weights.symmetric:
                return "vLLM has a kernel for asymmetric 8-bit weights alone on Hopper GPUs only"
            return "vLLM has no CPU kernel for 8-bit weights alone"
        return None

    def experts_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why vLLM cannot serve experts in a scheme that it serves otherwise; None where it can."""
        if activations == "int8-static":
            return "vLLM serves experts with int8 activations per token only"
        if weights.type == "int" and weights.bits == 8 and not weights.symmetric:
            return "vLLM has no kernel for experts with asymmetric 8-bit weights"
        return None

    def tensors(self, linear: QuantizedLinear, activations: Activations) -> dict[str, Tensor]:
        """The tensors of a linear, by the last part of their names."""
        import torch

        from quantlib.formats.packing import pack_int32

        if activations != "none":
            weight = linear.codes
            if linear.scheme.type == "int":
                weight = (weight.to(torch.int16) - linear.middle).to(torch.int8)
            tensors = {"weight": weight, "weight_scale": linear.scales}
            if linear.input_scale is not None:
                tensors["input_scale"] = linear.input_scale
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

        from quantlib.formats.packing import unpack_int32
        from quantlib.numbers.quantized import QuantizedLinear

        scales, zero_points = tensors["weight_scale"], None
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
            codes, scales, zero_points, weights, tensors.get("input_scale"), group_index
        )

    def quantization_config(self, scheme: CheckpointScheme) -> dict[str, Any]:
        """The ``quantization_config`` of config.json.

        Fused names stand among those to ignore too: vLLM does not know of every model which parts
        it has fused.
        """
        weights = scheme.weights
        layout = _LAYOUTS[scheme.activations]
        quantized_activations = None
        if scheme.activations != "none":
            static = scheme.activations == "int8-static"
            quantized_activations = {
                "num_bits": 8,
                "type": weights.type,
                "strategy": "tensor" if static else "token",
                "dynamic": not static,
                "symmetric": True,
            }
        return {
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "format": layout,
            "ignore": [
                *scheme.exact,
                *scheme.exact_fused,
                *(rf"re:^{re.escape(name)}\." for name in scheme.exact_modules),
            ],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "format": layout,
                    "weights": {
                        "num_bits": weights.bits,
                        "type": weights.type,
                        "strategy": "channel" if weights.group_size == -1 else "group",
                        "group_size": None if weights.group_size == -1 else weights.group_size,
                        "symmetric": weights.symmetric,
                        "dynamic": False,
                    },
                    "input_activations": quantized_activations,
                    "output_activations": None,
                }
            },
        }

    def read_scheme(self, config: Mapping[str, Any]) -> tuple[WeightScheme, Callable[[str], bool]]:
        """The inverse of :meth:`quantization_config`."""
        weights = config["config_groups"]["group_0"]["weights"]
        scheme = WeightScheme(
            type=weights["type"],
            bits=weights["num_bits"],
            group_size=-1 if weights["strategy"] == "channel" else weights["group_size"],
            symmetric=weights["symmetric"],
        )
        exact = {name for name in config["ignore"] if not name.startswith("re:")}
        patterns = [
            re.compile(name.removeprefix("re:")) for name in config["ignore"] if name not in exact
        ]
        return (
            scheme,
            lambda name: name not in exact and not any(pattern.match(name) for pattern in patterns),
        )
