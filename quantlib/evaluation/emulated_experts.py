"""Experts that vLLM for CPUs has no kernel for, loaded by vLLM; see :mod:`.emulated_linears`.

vLLM's own classes make the parameters of a whole mixture and load the tensors, as they do for a
GPU. Then the weights are multiplied out. Where inputs stay as they are the experts are from there
on vLLM's exact ones, else they are computed here, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from vllm.model_executor.layers.activation import GeluAndMul, SiluAndMul, SwigluOAIAndMul
from vllm.model_executor.layers.fused_moe import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.int8 import Int8MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.int_wna16 import WNA16MoEBackend
from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import NvFp4MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.w4a8 import W4A8MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.w4a8_int8 import W4A8Int8MoeBackend
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
    CompressedTensorsMoEMethod,
    compressed_tensors_moe_w4a4_nvfp4,
    compressed_tensors_moe_w4a8_fp8,
    compressed_tensors_moe_w4a8_int8,
    compressed_tensors_moe_w8a8_fp8,
    compressed_tensors_moe_w8a8_int8,
    compressed_tensors_moe_w8a8_mxfp8,
    compressed_tensors_moe_wna16,
)
from vllm.scalar_type import scalar_types

from quantlib.evaluation.emulated_inputs import (
    Rounding,
    from_fp8,
    from_mxfp4,
    from_nvfp4,
    from_packed,
    rounding_of,
)
from quantlib.formats.compressed_config import activations_of
from quantlib.schemes import Activations

_BIASES = ("w13_bias", "w2_bias")
_ACTIVATIONS: dict[MoEActivation, Callable[[], nn.Module]] = {
    MoEActivation.SILU: SiluAndMul,
    MoEActivation.GELU: GeluAndMul,
    MoEActivation.GELU_TANH: lambda: GeluAndMul("tanh"),
    MoEActivation.SWIGLUOAI: SwigluOAIAndMul,
}


class _RoundingExperts(UnquantizedFusedMoEMethod):
    """Experts whose inputs are rounded, at their first linears and at their last."""

    def __init__(self, layer: nn.Module, activations: Activations) -> None:
        super().__init__(layer.moe_config)
        self._rounded: Rounding = rounding_of(activations)
        self._between = _ACTIVATIONS[layer.activation]()
        self.scales: dict[str, Tensor | None] = {}

    def process_weights_after_loading(self, _layer: nn.Module) -> None:
        """There is nothing to prepare."""

    def apply(
        self,
        layer: nn.Module,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any,
        shared_experts_input: Tensor | None,
    ) -> Tensor:
        """What the experts give for ``[tokens, hidden_size]``, weighed and summed."""
        summed = torch.zeros(x.shape, dtype=torch.float32)
        for expert in topk_ids.unique().tolist():
            tokens, places = (topk_ids == expert).nonzero(as_tuple=True)
            weights = topk_weights[tokens, places, None].float()
            inputs = x[tokens]
            if layer.apply_router_weight_on_input:
                inputs, weights = (inputs * weights).to(x.dtype), torch.ones_like(weights)
            inner = self._between(self._product(layer, "w13", expert, inputs))
            outputs = self._product(layer, "w2", expert, inner)
            summed.index_add_(0, tokens, outputs.float() * weights)
        return summed.to(x.dtype)

    def _product(self, layer: nn.Module, name: str, expert: int, x: Tensor) -> Tensor:
        bias, scales = getattr(layer, f"{name}_bias", None), self.scales[name]
        rounded = self._rounded(x, None if scales is None else scales[expert])
        weight = getattr(layer, f"{name}_weight")[expert]
        return linear(rounded, weight, None if bias is None else bias[expert])


def put_in_place() -> None:
    """Has vLLM choose its methods for experts as on a GPU, and computes them here."""
    choices: tuple[tuple[Any, str, Any], ...] = (
        (compressed_tensors_moe_w4a4_nvfp4, "nvfp4", NvFp4MoeBackend.EMULATION),
        (compressed_tensors_moe_w4a8_fp8, "w4a8", W4A8MoeBackend.CUTLASS),
        (compressed_tensors_moe_w4a8_int8, "w4a8_int8", W4A8Int8MoeBackend.CPU_INT4),
        (compressed_tensors_moe_w8a8_fp8, "fp8", Fp8MoeBackend.TRITON),
        (compressed_tensors_moe_w8a8_int8, "int8", Int8MoeBackend.TRITON),
        (compressed_tensors_moe_w8a8_mxfp8, "mxfp8", Fp8MoeBackend.MARLIN),
        (compressed_tensors_moe_wna16, "wna16", WNA16MoEBackend.MARLIN),
    )
    for module, kind, backend in choices:
        chosen = backend, CPUUnquantizedExperts
        setattr(module, f"select_{kind}_moe_backend", lambda *_, chosen=chosen, **__: chosen)
    compressed_tensors_moe_wna16.check_moe_marlin_supports_config = lambda *_, **__: True
    choose = CompressedTensorsMoEMethod.get_moe_method
    CompressedTensorsMoEMethod.get_moe_method = staticmethod(_emulating(choose))


def _emulating(choose: Callable[..., Any]) -> Callable[..., Any]:
    """What vLLM would choose for experts, with its preparation for a kernel replaced."""

    def get_moe_method(quant_config: Any, layer: nn.Module, layer_name: str) -> Any:
        method = choose(quant_config, layer, layer_name)
        if isinstance(method, UnquantizedFusedMoEMethod):
            return method
        first = f"{layer_name}.0.{layer.ckpt_gate_proj_name}"
        given = quant_config.get_scheme_dict(layer, first)
        inputs = given["input_activations"]
        if inputs is None:
            experts = UnquantizedFusedMoEMethod(layer.moe_config)
        else:
            experts = _RoundingExperts(layer, activations_of(inputs.model_dump(mode="json")))
        kind = getattr(method, "quant_type", scalar_types.uint4b8)
        method.process_weights_after_loading = lambda layer: _multiply_out(layer, experts, kind)
        return method

    return get_moe_method


def _multiply_out(layer: Any, experts: UnquantizedFusedMoEMethod, kind: Any) -> None:
    """Gives a mixture the weights that its codes stand for, and a method that multiplies them."""
    weights = {name: _weights(layer, name, kind) for name in ("w13", "w2")}
    if isinstance(experts, _RoundingExperts):
        experts.scales = {name: _input_scales(layer, name) for name in weights}
    for name in [each for each in layer._parameters if each not in _BIASES]:
        delattr(layer, name)
    for name, weight in weights.items():
        setattr(layer, f"{name}_weight", nn.Parameter(weight, requires_grad=False))
    layer._replace_quant_method(experts)
    experts.process_weights_after_loading(layer)


def _input_scales(layer: nn.Module, name: str) -> Tensor | None:
    """Of each expert; one for both of its first linears, and in FP8 the largest for all experts."""
    scales: Tensor | None = getattr(layer, f"{name}_input_global_scale", None)
    if scales is not None:
        return scales.data.view(len(scales), -1)[:, 0].clone()
    scales = getattr(layer, f"{name}_input_scale", None)
    return None if scales is None else scales.data.max().expand(len(scales)).clone()


def _weights(layer: nn.Module, name: str, kind: Any) -> Tensor:
    """Weights ``[experts, out_features, in_features]`` that a mixture's parameters stand for."""

    def part(last: str) -> Tensor | None:
        found = getattr(layer, f"{name}_{last}", None)
        return None if found is None else found.data

    packed, scales, dtype = part("weight_packed"), part("weight_scale"), torch.get_default_dtype()
    assert scales is not None
    if packed is None:
        if scales.dtype is torch.uint8:
            scales = torch.exp2(scales.float() - 127)
        if scales.dim() < 3:  # a scale for a whole linear
            scales = scales.view(len(scales), -1, 1)
        codes = part("weight")
        assert codes is not None
        return from_fp8(codes, scales, dtype)
    if packed.dtype is torch.int32:
        return from_packed(packed, scales, part("weight_zero_point"), kind, dtype)
    overall = part("weight_global_scale")
    if overall is None:
        return from_mxfp4(packed, scales, dtype)
    return from_nvfp4(packed, scales, 1 / overall.view(len(overall), -1)[:, 0], dtype)
