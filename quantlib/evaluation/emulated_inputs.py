"""What emulated kernels make of their inputs and weights: by vLLM's own functions where it has one.

Imported by vLLM's worker only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from vllm.model_executor.layers.quantization.input_quant_fp8 import QuantFP8
from vllm.model_executor.layers.quantization.utils import (
    mxfp8_utils,
    nvfp4_emulation_utils,
    quant_utils,
)
from vllm.model_executor.layers.quantization.utils.quant_utils import GroupShape
from vllm.scalar_type import ScalarType

from quantlib.numbers.inputs import round_input
from quantlib.schemes import Activations

Rounding = Callable[[Tensor, Tensor | None], Tensor]
"""From an input ``[..., in_features]`` and its scale, where it has one, to the values of codes."""

_NVFP4_GROUP, _MX_GROUP = 16, 32


_FP8: dict[Activations, GroupShape] = {
    "fp8": GroupShape.PER_TOKEN,
    "fp8-static": GroupShape.PER_TENSOR,
    "fp8-group": GroupShape(1, 128),
}


def rounding_of(activations: Activations) -> Rounding:
    """What rounds an input as vLLM's kernels for GPUs do it; to be asked for while it loads."""
    if activations == "none":
        return lambda x, _scale: x
    if activations == "nvfp4":
        return _to_nvfp4
    if activations == "mxfp8":
        return _to_mxfp8
    if activations in _FP8:
        return _to_fp8(_FP8[activations], activations == "fp8-static")
    # vLLM's for int8 run on GPUs alone, and those for MXFP4 ask for a package of AMD's.
    return lambda x, scale: round_input(x, activations, scale)


def _to_nvfp4(x: Tensor, scale: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return nvfp4_emulation_utils.ref_nvfp4_quant_dequant(rows, scale, _NVFP4_GROUP).view(x.shape)


def _to_mxfp8(x: Tensor, _scale: Tensor | None) -> Tensor:
    codes, scales = mxfp8_utils.mxfp8_e4m3_quantize(x.reshape(-1, x.shape[-1]))
    return mxfp8_utils.dequant_mxfp8_to_bf16(codes, scales).to(x.dtype).view(x.shape)


def _to_fp8(shape: GroupShape, static: bool) -> Rounding:
    quantize = QuantFP8(static=static, group_shape=shape)

    def rounded(x: Tensor, scale: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        codes, steps = quantize.forward_native(rows, scale)
        return from_fp8(codes, torch.atleast_2d(steps), x.dtype).view(x.shape)

    return rounded


def from_fp8(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights of codes and scales that lie over them: FP8, and int8 that is not packed.

    Args:
        codes: ``[..., out_features, in_features]``.
        scales: ``[..., rows, groups]``: a scale for each block, or for each row where groups are 1.
        dtype: Of the result.
    """
    for dimension in (-2, -1):
        repeats = -(-codes.shape[dimension] // scales.shape[dimension])
        scales = scales.repeat_interleave(repeats, dimension)
        scales = scales.narrow(dimension, 0, codes.shape[dimension])
    return (codes.float() * scales.float()).to(dtype)


def from_nvfp4(codes: Tensor, scales: Tensor, overall: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights of NVFP4.

    Args:
        codes: uint8 ``[..., out_features, in_features / 2]``.
        scales: float8_e4m3fn ``[..., out_features, groups]``.
        overall: What scales are multiplied by: one, or ``[experts]``.
        dtype: Of the result.
    """
    return nvfp4_emulation_utils.dequantize_to_dtype(
        codes.view(torch.uint8), scales, overall, dtype, _NVFP4_GROUP, swizzle=False
    )


def from_mxfp4(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights of MXFP4: codes as :func:`from_nvfp4` takes them, exponents plus 127 in uint8."""
    values = nvfp4_emulation_utils.break_fp4_bytes(codes.flatten(0, -2), torch.float32)
    values = values.view(*codes.shape[:-1], -1)
    return from_fp8(values, torch.exp2(scales.float() - 127), dtype)


def from_packed(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, kind: ScalarType, dtype: torch.dtype
) -> Tensor:
    """Weights of whole numbers that fill int32.

    Args:
        codes: int32 ``[..., out_features, in_features * bits / 32]``.
        scales: ``[..., out_features, groups]``.
        zeros: int32 ``[..., out_features * bits / 32, groups]``, or None.
        kind: What a code is: bits, and what is taken off it where there are no zeros.
        dtype: Of the result.
    """
    unpack = quant_utils.unpack_quantized_values_into_int32
    values = unpack(codes, kind, codes.dim() - 1)
    groups = values.unflatten(-1, (scales.shape[-1], -1))
    middle = kind.bias if zeros is None else unpack(zeros, kind, zeros.dim() - 2)[..., None]
    return ((groups - middle) * scales.float()[..., None]).flatten(-2).to(dtype)
