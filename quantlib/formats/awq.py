"""The AWQ checkpoint format, AutoAWQ's "gemm" layout: vLLM's auto_awq.py reads it.

| tensor | dtype | shape | content |
|---|---|---|---|
| `qweight` | int32 | `[in_features, out_features / 8]` | codes packed along the output |
| `qzeros` | int32 | `[groups, out_features / 8]` | zero points, packed alike |
| `scales` | as the model | `[groups, out_features]` | |

A word holds the codes of eight output channels in the order 0, 2, 4, 6, 1, 3, 5, 7, the lowest bits
first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantlib.formats.base import BaseFormat, CheckpointScheme, SchemeOf, padding_problem
from quantlib.formats.registry import format_registry
from quantlib.schemes import Activations, LinearScheme, WeightScheme

if TYPE_CHECKING:
    from torch import Tensor

    from quantlib.numbers.quantized import QuantizedLinear

_BITS = 4
_GROUP_SIZES = (32, 64, 128)
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which output channel's code stands at each place of a word."""


@format_registry.register("awq")
class AWQFormat(BaseFormat):
    """Weights only, 4 bits, with zero points.

    Symmetric weights are written with the zero point 8 everywhere: vLLM's Marlin kernel takes AWQ
    with zero points only, and without them a GPU would fall back to a slower kernel.
    """

    name = "awq"
    vllm_name = "awq"
    row_axis = 1

    def scheme_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why the format, or vLLM reading it, cannot hold a scheme; None where they can."""
        if activations != "none":
            return "it holds weights only; use compressed-tensors for quantized activations"
        if weights.type != "int":
            return "it holds whole numbers only; use compressed-tensors for FP8"
        if weights.bits != _BITS:
            return f"vLLM serves it for {_BITS} bits, not {weights.bits}"
        if weights.group_size not in _GROUP_SIZES:
            return f"it is written for group sizes {_GROUP_SIZES}, not {weights.group_size}"
        return None

    def cpu_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why vLLM cannot serve the scheme on a CPU, though on a GPU; None where it can."""
        return None

    def head_problem(self, scheme: LinearScheme, rows: int) -> str | None:
        """Why vLLM cannot read a head in a scheme that it serves otherwise; None where it can."""
        return padding_problem(rows)

    def tensors(self, linear: QuantizedLinear, activations: Activations) -> dict[str, Tensor]:
        """The tensors of a linear, by the last part of their names."""
        import torch

        zero_points = linear.zero_points
        if zero_points is None:
            zero_points = torch.full_like(linear.scales, linear.middle, dtype=torch.uint8)
        return {
            "qweight": _pack(linear.codes.t()),
            "qzeros": _pack(zero_points.t()),
            "scales": linear.scales.t().contiguous(),
        }

    def parse(self, tensors: Mapping[str, Tensor], weights: WeightScheme) -> QuantizedLinear:
        """The inverse of :meth:`tensors`."""
        from quantlib.numbers.quantized import QuantizedLinear

        return QuantizedLinear(
            codes=_unpack(tensors["qweight"]).t().contiguous(),
            scales=tensors["scales"].t().contiguous(),
            zero_points=None if weights.symmetric else _unpack(tensors["qzeros"]).t().contiguous(),
            scheme=weights,
        )

    def quantization_config(self, scheme: CheckpointScheme) -> dict[str, Any]:
        """The ``quantization_config`` of config.json.

        vLLM looks for ``modules_to_not_convert`` anywhere within a linear's name; for fused linears
        by the names of their parts, or by their own where it does not know the parts. ``sym`` is
        what :meth:`read_schemes` needs; vLLM goes by ``zero_point``.
        """
        weights = scheme.schemes[0].scheme.weights
        head = {"lm_head": True} if scheme.head else {}
        return head | {
            "quant_method": "awq",
            "version": "gemm",
            "bits": weights.bits,
            "group_size": weights.group_size,
            "zero_point": True,
            "sym": weights.symmetric,
            "modules_to_not_convert": [
                *scheme.exact,
                *scheme.exact_fused,
                *scheme.exact_modules,
            ],
        }

    def read_schemes(self, config: Mapping[str, Any]) -> SchemeOf:
        """The inverse of :meth:`quantization_config`."""
        weights = WeightScheme(
            bits=config["bits"], group_size=config["group_size"], symmetric=config["sym"]
        )
        scheme = LinearScheme(weights=weights)
        exact = config["modules_to_not_convert"]
        linears, modules = set(exact), tuple(f"{name}." for name in exact)
        return lambda name: None if name in linears or name.startswith(modules) else scheme


def _pack(codes: Tensor) -> Tensor:
    """uint8 ``[rows, columns]`` to int32 ``[rows, columns / 8]``."""
    from quantlib.formats.packing import pack_int32

    return pack_int32(codes.unflatten(1, (-1, len(_ORDER)))[..., _ORDER].flatten(1), _BITS)


def _unpack(words: Tensor) -> Tensor:
    """The inverse of :func:`_pack`."""
    from quantlib.formats.packing import unpack_int32

    codes = unpack_int32(words, _BITS, words.shape[1] * len(_ORDER))
    inverse = sorted(range(len(_ORDER)), key=_ORDER.__getitem__)
    return codes.unflatten(1, (-1, len(_ORDER)))[..., inverse].flatten(1)
