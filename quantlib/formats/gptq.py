"""The GPTQ checkpoint format, version 1: AutoGPTQ introduced it, vLLM's auto_gptq.py reads it.

Version 2 (GPTQModel) differs in that zero points are stored as they are; it is read, not written.

| tensor | dtype | shape | content |
|---|---|---|---|
| `qweight` | int32 | `[in_features * bits / 32, out_features]` | codes packed along the input |
| `qzeros` | int32 | `[groups, out_features * bits / 32]` | zero points minus one |
| `scales` | as the model | `[groups, out_features]` | |
| `g_idx` | int32 | `[in_features]` | group of each input channel: consecutive |
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from quantlib.formats.base import BaseFormat, CheckpointScheme, SchemeOf, padding_problem
from quantlib.formats.registry import format_registry
from quantlib.schemes import Activations, LinearScheme, WeightScheme

if TYPE_CHECKING:
    from torch import Tensor

    from quantlib.numbers.quantized import QuantizedLinear

_GROUP_SIZES = (-1, 32, 64, 128)


@format_registry.register("gptq")
class GPTQFormat(BaseFormat):
    """Weights only, symmetric."""

    name = "gptq"
    vllm_name = "gptq"
    emulated = True
    row_axis = 1

    def scheme_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why the format, or vLLM reading it, cannot hold a scheme; None where they can."""
        if activations != "none":
            return "it holds weights only; use compressed-tensors for quantized activations"
        if weights.type != "int":
            return "it holds whole numbers only; use compressed-tensors for FP8"
        if not weights.symmetric:
            return "vLLM serves it for symmetric weights only; use compressed-tensors"
        if weights.bits not in (4, 8):
            return f"vLLM serves it for 4 and 8 bits, not {weights.bits}"
        if weights.group_size not in _GROUP_SIZES:
            return f"vLLM serves it for group sizes {_GROUP_SIZES}, not {weights.group_size}"
        return None

    def mixture_problem(self, schemes: Collection[LinearScheme]) -> str | None:
        """None: rules by name say other bits and group sizes."""
        return None

    def cpu_problem(self, weights: WeightScheme, activations: Activations) -> str | None:
        """Why vLLM cannot serve the scheme on a CPU, though on a GPU; None where it can."""
        return "vLLM has no CPU kernel for 8-bit weights alone" if weights.bits == 8 else None

    def head_problem(self, scheme: LinearScheme, rows: int) -> str | None:
        """Why vLLM cannot read a head in a scheme that it serves otherwise; None where it can."""
        return padding_problem(rows)

    def tensors(self, linear: QuantizedLinear, activations: Activations) -> dict[str, Tensor]:
        """The tensors of a linear, by the last part of their names."""
        import torch

        from quantlib.formats.packing import pack_int32

        bits, groups = linear.scheme.bits, linear.scales.shape[1]
        rows, columns = linear.codes.shape
        zero = linear.middle - 1  # version 1 stores zero points minus one
        zeros = torch.full((groups, rows), zero, dtype=torch.uint8, device=linear.codes.device)
        channels = torch.arange(columns, dtype=torch.int32)
        return {
            "qweight": pack_int32(linear.codes, bits).t().contiguous(),
            "qzeros": pack_int32(zeros, bits),
            "scales": linear.scales.t().contiguous(),
            "g_idx": channels // (columns // groups),
        }

    def parse(
        self, tensors: Mapping[str, Tensor], weights: WeightScheme, less: int = 1
    ) -> QuantizedLinear:
        """The inverse of :meth:`tensors`; zero points are read for an asymmetric scheme.

        Args:
            tensors: As they are stored.
            weights: Bits, and whether zero points count.
            less: What zero points are stored less by: 1 in version 1 of the format, 0 in version 2.
        """
        import torch

        from quantlib.formats.packing import unpack_stream
        from quantlib.numbers.quantized import QuantizedLinear

        words, scales = tensors["qweight"].t(), tensors["scales"].t().contiguous()
        codes = unpack_stream(words, weights.bits, words.shape[1] * 32 // weights.bits)
        rows, columns = codes.shape
        zero_points = None
        if not weights.symmetric:
            zeros = unpack_stream(tensors["qzeros"], weights.bits, rows)
            # A stored zero point may be the largest code, which is no number of so many bits then.
            zero_points = (zeros.to(torch.int16) + less).t().contiguous()
        size = columns if weights.group_size == -1 else weights.group_size
        consecutive = torch.arange(columns) // size
        index = tensors["g_idx"].long() if "g_idx" in tensors else consecutive
        usual = columns % size == 0 and torch.equal(index, consecutive)
        group_index = None if usual else index
        return QuantizedLinear(codes, scales, zero_points, weights, group_index=group_index)

    def quantization_config(self, scheme: CheckpointScheme) -> dict[str, Any]:
        """The ``quantization_config`` of config.json.

        Linears that stay exact, or are of another scheme than the rest, are named by GPTQModel's
        rules (``dynamic``), which vLLM matches against its own, fused names.
        """
        rest, *others = scheme.schemes
        dynamic: dict[str, dict[str, Any]] = {
            f"-:{_pattern(name)}": {} for name in (*scheme.exact, *scheme.exact_fused)
        }
        dynamic |= {rf"-:{re.escape(name)}(\.|$)": {} for name in scheme.exact_modules}
        for other in others:
            weights = other.scheme.weights
            sizes = {"bits": weights.bits, "group_size": weights.group_size}
            dynamic |= {f"+:{_pattern(name)}": sizes for name in other.names}
        return {
            "quant_method": "gptq",
            "checkpoint_format": "gptq",
            "bits": rest.scheme.weights.bits,
            "group_size": rest.scheme.weights.group_size,
            "sym": True,
            "desc_act": False,
            "lm_head": scheme.head,
            "dynamic": dynamic,
        }

    def read_schemes(self, config: Mapping[str, Any]) -> SchemeOf:
        """The inverse of :meth:`quantization_config`."""
        rules = [
            (re.compile(rule[2:]), LinearScheme(weights=WeightScheme(**other)) if other else None)
            for rule, other in config.get("dynamic", {}).items()
        ]
        weights = WeightScheme(bits=config["bits"], group_size=config["group_size"])
        rest = LinearScheme(weights=weights)
        return lambda name: next((of for rule, of in rules if rule.match(name)), rest)


def _pattern(name: str) -> str:
    """A regular expression for a name that may be one."""
    return name[3:] if name.startswith("re:") else f"{re.escape(name)}$"
