"""vLLM's worker for CPUs. Imported by vLLM, in its own processes.

An engine with one device runs its worker in the process that made it.

vLLM 0.32's kernels for CPUs answer wrongly, without an error, where families use them that nobody
has tried there; LFM2, DeepSeek-V3, ERNIE 4.5 and MiniMax-M2 among them. The models that we judge
are computed by what corrects them: the reference and the candidate alike. tests/evaluation has each
against plain torch, and fails where a later vLLM has no need of it. What vLLM has no kernel for is
computed by :mod:`.emulated_linears` and :mod:`.emulated_experts`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm import _custom_ops as ops
from vllm.model_executor.layers.fused_moe.router import cpu_router
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsKVCacheMethod,
)
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl
from vllm.v1.worker.cpu_worker import CPUWorker

from quantlib.evaluation import emulated_experts, emulated_linears

_Kernel = Callable[..., None]
_E4M3 = ("fp8", "fp8_e4m3")


class CorrectedCpuWorker(CPUWorker):
    """A worker whose kernels are corrected, and emulated where vLLM has none."""

    def load_model(self, **options: Any) -> None:
        """Loads the model."""
        correct_kernels()
        emulated_linears.put_in_place()
        emulated_experts.put_in_place()
        super().load_model(**options)


class Float32CpuWorker(CorrectedCpuWorker):
    """The same, whose oneDNN products run in float32: for CPUs that emulate products in 16 bits."""

    def load_model(self, **options: Any) -> None:
        """Loads the model, whose weights are prepared for the products then."""
        _multiply_in_float32()
        super().load_model(**options)


def correct_kernels() -> None:
    """Puts corrected kernels in the place of vLLM's."""
    ops.rotary_embedding = rotating(ops.rotary_embedding)
    ops.rms_norm = normalizing(ops.rms_norm)
    router = cpu_router.CPURouter
    router._compute_routing = routing(router._compute_routing)
    CompressedTensorsKVCacheMethod.process_weights_after_loading = scaling_heads(
        CompressedTensorsKVCacheMethod.process_weights_after_loading
    )
    attention = CPUAttentionBackendImpl
    if not hasattr(attention.forward, "__wrapped__"):  # twice would take scales twice
        attention.do_kv_cache_update = caching(attention.do_kv_cache_update)
        attention.forward = attending(attention.forward)


def rotating(kernel: _Kernel) -> _Kernel:
    """A rotary embedding that takes heads as a dimension.

    vLLM's takes the number of heads from the last dimension of ``[tokens, heads, head_size]``, and
    so turns the first head only.
    """

    def rotary_embedding(
        positions: Tensor, query: Tensor, key: Tensor | None, *options: Any, **named: Any
    ) -> None:
        flat = [_without_heads(each) for each in (query, key)]
        kernel(positions, *flat, *options, **named)
        for given, turned in zip((query, key), flat, strict=True):
            if given is not None and turned is not None and turned.data_ptr() != given.data_ptr():
                given.copy_(turned.view(given.shape))

    return rotary_embedding


def _without_heads(states: Tensor | None) -> Tensor | None:
    """States ``[tokens, heads * head_size]`` of those with heads apart; a view where it can be."""
    return states.flatten(1) if states is not None and states.dim() == 3 else states


def normalizing(kernel: _Kernel) -> _Kernel:
    """An RMS norm that takes any strides: vLLM's reads what is not contiguous as if it were."""

    def rms_norm(out: Tensor, states: Tensor, weight: Tensor | None, epsilon: float) -> None:
        kernel(out, states.contiguous(), weight, epsilon)

    return rms_norm


def routing(compute: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A choice of experts that knows of corrections and of sigmoids.

    Where experts are not grouped, vLLM's ignores the correction of the scores and has no other
    scores than softmax's. All experts as one group are chosen among by the code for groups, which
    has both.
    """

    def compute_routing(router: Any, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        plain = not router.use_grouped_topk and router.custom_routing_function is None
        corrected = router.e_score_correction_bias is not None
        if plain and (
            router.scoring_func == "sigmoid" or (router.scoring_func == "softmax" and corrected)
        ):
            router.use_grouped_topk, router.num_expert_group, router.topk_group = True, 1, 1
        return compute(router, *arguments, **options)

    return compute_routing


def scaling_heads(prepare: Callable[..., None]) -> Callable[..., None]:
    """Leaves scales of keys and values per head to :func:`caching` and :func:`attending`.

    vLLM's attention for CPUs takes one scale for a layer, and of several the largest.
    """

    def process_weights_after_loading(method: Any, layer: Any) -> None:
        prepare(method, layer)
        if layer._k_scale.numel() > 1:
            layer._k_scale_float = layer._v_scale_float = 1.0

    return process_weights_after_loading


def caching(update: Callable[..., None]) -> Callable[..., None]:
    """Keeps the FP8 numbers that are nearest to keys and values over their scales, as GPUs do.

    vLLM's kernel for CPUs takes the next one towards zero, and one scale for all heads.
    """

    @wraps(update)
    def do_kv_cache_update(
        impl: Any, layer: Any, key: Tensor, value: Tensor, *arguments: Any
    ) -> None:
        if impl.kv_cache_dtype in _E4M3:
            key, value = _nearest(key, layer._k_scale), _nearest(value, layer._v_scale)
            layer = SimpleNamespace(isa=layer.isa, _k_scale_float=1.0, _v_scale_float=1.0)
        update(impl, layer, key, value, *arguments)

    return do_kv_cache_update


def _nearest(x: Tensor, scale: Tensor) -> Tensor:
    """FP8 numbers in the dtype of ``x``, ``[tokens, heads, width]``."""
    largest = torch.finfo(torch.float8_e4m3fn).max
    values = (x.float() / scale.reshape(-1, 1)).clamp(-largest, largest)
    return values.to(torch.float8_e4m3fn).to(x.dtype)


def attending(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Attends to keys and values with scales per head, which queries and results take."""

    @wraps(forward)
    def attend(
        impl: Any,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        metadata: Any,
        output: Tensor,
        *arguments: Any,
        **options: Any,
    ) -> Tensor:
        shared = impl.num_queries_per_kv
        apart = impl.kv_cache_dtype in _E4M3 and layer._k_scale.numel() > 1
        if apart:
            scale = layer._k_scale.repeat_interleave(shared)[:, None]
            query = (query.float() * scale).to(query.dtype)
        given = (query, key, value, kv_cache, metadata, output, *arguments)
        result = forward(impl, layer, *given, **options)
        if apart:
            output.mul_(layer._v_scale.repeat_interleave(shared)[:, None])
        return result

    return attend


def _multiply_in_float32() -> None:
    """Makes vLLM's oneDNN products run in float32: emulated 16 bits are 3 to 10 times slower.

    oneDNN sums 16-bit products in float32 and rounds the sum, and so does this. Kernels of
    quantized linears are left alone.
    """
    create, multiply = ops.create_onednn_mm, ops.onednn_mm

    def create_float32(weight: Tensor, *arguments: Any) -> Any:
        return create(weight.float(), *arguments)

    def multiply_float32(handler: Any, inputs: Tensor, bias: Tensor | None) -> Tensor:
        bias = None if bias is None else bias.float()
        return multiply(handler, inputs.float(), bias).to(inputs.dtype)

    ops.create_onednn_mm, ops.onednn_mm = create_float32, multiply_float32
