"""What vLLM for CPUs has no kernel for: loaded by vLLM, and computed as exact linears are.

vLLM's own classes make the parameters and load the tensors. Then the weights are multiplied out,
once, and from there on a linear is one of vLLM's exact linears, whose input is rounded as its
kernels for GPUs round it. Heads are linears, too; a table of embeddings is multiplied out alike.
Nothing is changed but in the process that imports this.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from vllm.model_executor.kernels import linear as kernels
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import auto_gptq
from vllm.model_executor.layers.quantization.compressed_tensors import compressed_tensors
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import (
    CompressedTensorsW4A4Mxfp4,
    CompressedTensorsW4A8Fp8,
    compressed_tensors_w8a8_fp8,
)
from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8StaticTensorSym
from vllm.model_executor.layers.quantization.utils.w8a8_utils import convert_to_channelwise
from vllm.model_executor.parameter import permute_param_layout_
from vllm.platforms.interface import PlatformEnum
from vllm.scalar_type import scalar_types

from quantlib.evaluation.emulated_inputs import (
    from_fp8,
    from_mxfp4,
    from_nvfp4,
    from_packed,
    rounding_of,
)
from quantlib.schemes import Activations


class _Emulated:
    """What all kernels share.

    Attributes:
        activations: What the input is rounded to.
        step: By which of a linear's parameters, if by any.
        parts: The parameters that are of no use once the weight is multiplied out.
    """

    activations: Activations = "none"
    step: ClassVar[str | None] = None
    parts: tuple[str, ...] = ("weight_scale",)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._exact = UnquantizedLinearMethod()
        self._rounded = rounding_of(self.activations)

    @classmethod
    def is_supported(cls, _compute_capability: int | None = None) -> tuple[bool, str | None]:
        return True, None

    @classmethod
    def can_implement(cls, _config: Any) -> tuple[bool, str | None]:
        return True, None

    def weight(self, layer: Any) -> Tensor:
        """The weight ``[out_features, in_features]`` that a linear's parameters stand for."""
        raise NotImplementedError

    def process_weights_after_loading(self, layer: Any) -> None:
        weight = self.weight(layer)
        for name in self.parts:
            delattr(layer, name)
        layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self._exact.process_weights_after_loading(layer)

    def apply_weights(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        step = None if self.step is None else getattr(layer, self.step)
        return self._exact.apply(layer, self._rounded(x, step), bias)


class _Nvfp4Alone(_Emulated, kernels.NvFp4LinearKernel):
    """NVFP4 weights alone."""

    def weight(self, layer: Any) -> Tensor:
        parts = layer.weight.data, layer.weight_scale.data, layer.weight_global_scale
        return from_nvfp4(*parts, torch.get_default_dtype())


class _Nvfp4(_Nvfp4Alone):
    """NVFP4 weights and inputs."""

    activations = "nvfp4"
    step = "input_global_scale_inv"


class _Mxfp4(_Emulated, kernels.MxFp4LinearKernel):
    """MXFP4 weights, and inputs where the checkpoint asks for it."""

    def __init__(self, config: kernels.MxFp4LinearLayerConfig) -> None:
        self.activations = "none" if config.activation_quant_key is None else "mxfp4"
        super().__init__(config)

    def weight(self, layer: Any) -> Tensor:
        return from_mxfp4(layer.weight.data, layer.weight_scale.data, torch.get_default_dtype())


class _Mxfp8(_Emulated, kernels.Mxfp8LinearKernel):
    """MXFP8 weights and inputs."""

    activations = "mxfp8"

    def weight(self, layer: Any) -> Tensor:
        scales = torch.exp2(layer.weight_scale.data.float() - 127)
        return from_fp8(layer.weight.data, scales, torch.get_default_dtype())


class _Fp8Block(
    _Emulated, kernels.scaled_mm.BlockScaledMMLinearKernel.Fp8BlockScaledMMLinearKernel
):
    """FP8 in blocks, inputs per token and 128 channels."""

    activations = "fp8-group"

    def weight(self, layer: Any) -> Tensor:
        return from_fp8(layer.weight.data, layer.weight_scale.data, torch.get_default_dtype())

    def apply_block_scaled_mm(self, *_: Any, **__: Any) -> Tensor:
        raise NotImplementedError


class _Fp8Static(_Emulated, kernels.FP8ScaledMMLinearKernel):
    """FP8 with one scale for all inputs.

    vLLM's kernels for CPUs fail where weights have one per channel, and leave inputs as they are
    where there is AMX.
    """

    activations = "fp8-static"
    step = "input_scale"

    @classmethod
    def can_implement(cls, config: kernels.FP8ScaledMMLinearLayerConfig) -> tuple[bool, str | None]:
        static = config.activation_quant_key == kFp8StaticTensorSym
        return static, None if static else "vLLM has kernels for it"

    def weight(self, layer: Any) -> Tensor:
        scales = torch.atleast_2d(layer.weight_scale.data)
        return from_fp8(layer.weight.data.t(), scales, torch.get_default_dtype())

    def apply_scaled_mm(self, *_: Any, **__: Any) -> Tensor:
        raise NotImplementedError


class _Packed(_Emulated, kernels.MPLinearKernel):
    """Whole numbers packed in int32, with inputs of 16 bits or FP8."""

    def __init__(self, config: kernels.MPLinearLayerConfig, *names: Any, **options: Any) -> None:
        self.activations = "fp8" if config.act_type is torch.float8_e4m3fn else "none"
        super().__init__(config, *names, **options)

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, config: kernels.MPLinearLayerConfig) -> tuple[bool, str | None]:
        served = config.weight_type.size_bits == 4 and config.act_type is not torch.float8_e4m3fn
        return not served, "vLLM has kernels for it" if served else None

    def weight(self, layer: Any) -> Tensor:
        codes, scales, zeros = self._get_weight_params(layer)
        permute_param_layout_(codes, input_dim=1, output_dim=0, packed_dim=1)
        permute_param_layout_(scales, input_dim=1, output_dim=0)
        if not self.config.zero_points:
            zeros = None
        self.parts = tuple(
            name for name in (self.w_q_name, self.w_s_name, self.w_zp_name) if hasattr(layer, name)
        )
        kind = self.config.weight_type
        if kind == scalar_types.int4:  # what Hopper's kernel makes of codes that lie as all others
            kind = scalar_types.uint4b8
        return from_packed(codes.data, scales.data, zeros, kind, torch.get_default_dtype())


class _Embeddings(compressed_tensors.CompressedTensorsEmbeddingWNA16Int):
    """Embeddings of whole numbers, which vLLM looks up with Triton."""

    def process_weights_after_loading(self, layer: Any) -> None:
        kind = getattr(scalar_types, f"uint{self.num_bits}b{1 << (self.num_bits - 1)}")
        codes, scales = layer.weight_packed.data, layer.weight_scale.data
        layer.weight = nn.Parameter(
            from_packed(codes, scales, None, kind, scales.dtype), requires_grad=False
        )
        for name in ("weight_packed", "weight_scale"):
            delattr(layer, name)

    def embedding(self, layer: Any, input_: Tensor) -> Tensor:
        return functional.embedding(input_, layer.weight)


def put_in_place() -> None:
    """Registers the kernels, those of FP8 before vLLM's, which fail or need AMX."""
    cpu = PlatformEnum.CPU
    kernels.register_linear_kernel(_Nvfp4, cpu, "nvfp4")
    kernels.register_linear_kernel(_Mxfp4, cpu, "mxfp4")
    kernels.register_linear_kernel(_Mxfp8, cpu, "mxfp8")
    kernels.MarlinNvFp4LinearKernel = _Nvfp4Alone  # chosen by name where inputs are exact
    kernels._POSSIBLE_KERNELS[cpu].insert(0, _Packed)
    kernels._POSSIBLE_FP8_KERNELS[cpu].insert(0, _Fp8Static)
    kernels._POSSIBLE_FP8_BLOCK_KERNELS[cpu].insert(0, _Fp8Block)
    auto_gptq.verify_marlin_supported = lambda **_: None
    compressed_tensors_w8a8_fp8.process_fp8_weight_tensor_strategy = _by_channel
    compressed_tensors.CompressedTensorsEmbeddingWNA16Int = _Embeddings
    config = compressed_tensors.CompressedTensorsConfig
    config._get_scheme_from_parts = _choosing(config._get_scheme_from_parts)


def _by_channel(
    weight: Tensor, scales: Tensor, widths: list[int], input_scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weights whose fused parts may differ in scale, which vLLM for CPUs cannot round anew."""
    return weight.t(), convert_to_channelwise(scales, widths), input_scale


def _choosing(choose: Any) -> Any:
    """Chooses what vLLM would on a GPU: W4AFP8 as on Hopper, MXFP4 with inputs as they are said."""

    def get_scheme_from_parts(
        config: Any, weight_quant: Any, input_quant: Any, *arguments: Any, **options: Any
    ) -> Any:
        if config._is_mxfp4(weight_quant) and input_quant is None:
            return CompressedTensorsW4A4Mxfp4(activation_quant_key=None)
        if config._is_fp8_w4a8(weight_quant, input_quant):
            names = ("num_bits", "strategy", "symmetric", "group_size")
            return CompressedTensorsW4A8Fp8(**{name: getattr(weight_quant, name) for name in names})
        return choose(config, weight_quant, input_quant, *arguments, **options)

    return get_scheme_from_parts
