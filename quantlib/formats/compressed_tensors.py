"""The compressed-tensors formats: pack-quantized (weights only) and int-quantized (W8A8).

pack-quantized, as compressed_tensors/compressors/pack_quantized reads it:

| tensor | dtype | shape | content |
|---|---|---|---|
| `weight_packed` | int32 | `[out_features, in_features * bits / 32]` | codes, along the input |
| `weight_scale` | as the model | `[out_features, groups]` | |
| `weight_zero_point` | int32 | `[out_features * bits / 32, groups]` | if asymmetric; along output |
| `weight_shape` | int64 | `[2]` | out_features, in_features |

int-quantized: `weight` int8 `[out_features, in_features]` and `weight_scale` `[out_features, 1]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from quantlib.formats.base import Activations, BaseFormat, CheckpointScheme
from quantlib.formats.registry import format_registry
from quantlib.recipe import WeightScheme

if TYPE_CHECKING:
    from torch import Tensor

    from quantlib.quantized import QuantizedLinear


@format_registry.register("compressed-tensors")
class CompressedTensorsFormat(BaseFormat):
    """Weights of 4 and 8 bits, symmetric or not; int8 activations with 8-bit weights."""

    name = "compressed-tensors"
    vllm_name = "compressed-tensors"

    def scheme_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why the format, or vLLM reading it, cannot hold a scheme; None where they can."""
        if weights.bits not in (4, 8):
            return f"vLLM serves it for 4 and 8 bits, not {weights.bits}"
        if activations == "int8" and (
            weights.bits != 8 or weights.group_size != -1 or not weights.symmetric
        ):
            return (
                "int8 activations go with weights of 8 bits, per channel (group_size -1) and "
                "symmetric"
            )
        return None

    def cpu_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why vLLM cannot serve the scheme on a CPU, though on a GPU; None where it can."""
        if weights.bits == 8 and activations == "none":
            return "vLLM has no CPU kernel for 8-bit weights alone"
        return None

    def tensors(self, linear: QuantizedLinear, activations: Activations) -> dict[str, Tensor]:
        """The tensors of a linear, by the last part of their names."""
        import torch

        from quantlib.formats.packing import pack_int32

        if activations == "int8":
            signed = (linear.codes.to(torch.int16) - linear.middle).to(torch.int8)
            return {"weight": signed, "weight_scale": linear.scales}
        bits = linear.scheme.bits
        tensors = {
            "weight_packed": pack_int32(linear.codes, bits),
            "weight_scale": linear.scales,
            "weight_shape": torch.tensor(linear.codes.shape),
        }
        if linear.zero_points is not None:
            tensors["weight_zero_point"] = pack_int32(linear.zero_points.t(), bits).t().contiguous()
        return tensors

    def parse(self, tensors: Mapping[str, Tensor], weights: WeightScheme) -> QuantizedLinear:
        """The inverse of :meth:`tensors`."""
        import torch

        from quantlib.formats.packing import unpack_int32
        from quantlib.quantized import QuantizedLinear

        scales, zero_points = tensors["weight_scale"], None
        if "weight_packed" in tensors:
            rows, columns = tensors["weight_shape"].tolist()
            codes = unpack_int32(tensors["weight_packed"], weights.bits, columns)
            if not weights.symmetric:
                words = tensors["weight_zero_point"].t()
                zero_points = unpack_int32(words, weights.bits, rows).t().contiguous()
        else:
            middle = 1 << (weights.bits - 1)
            codes = (tensors["weight"].to(torch.int16) + middle).to(torch.uint8)
        return QuantizedLinear(codes, scales, zero_points, weights)

    def quantization_config(self, scheme: CheckpointScheme) -> dict[str, Any]:
        """The ``quantization_config`` of config.json."""
        weights = scheme.weights
        quantized_activations = None
        if scheme.activations == "int8":
            quantized_activations = {
                "num_bits": 8,
                "type": "int",
                "strategy": "token",
                "dynamic": True,
                "symmetric": True,
            }
        layout = "pack-quantized" if scheme.activations == "none" else "int-quantized"
        return {
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "format": layout,
            "ignore": list(scheme.exact),
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "format": layout,
                    "weights": {
                        "num_bits": weights.bits,
                        "type": "int",
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
            bits=weights["num_bits"],
            group_size=-1 if weights["strategy"] == "channel" else weights["group_size"],
            symmetric=weights["symmetric"],
        )
        exact = set(config["ignore"])
        return scheme, lambda name: name not in exact
