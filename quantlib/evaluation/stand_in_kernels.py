"""Lets vLLM for CPUs build and load what it has no kernels for: quantized experts, 8-bit weights.

What chooses a kernel is answered with one that computes nothing. vLLM's own classes make the
parameters and load the tensors, as they do on a GPU. Imported by the worker of the dry load only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.kernels.linear import MPLinearKernel, register_linear_kernel
from vllm.model_executor.layers.fused_moe.oracle import fp8, int8, int_wna16
from vllm.platforms.interface import PlatformEnum


class _NoLinearKernel(MPLinearKernel):
    """Takes every linear of packed weights."""

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @classmethod
    def can_implement(cls, _config: Any) -> tuple[bool, str | None]:
        return True, None

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """There is nothing to prepare."""

    def apply_weights(self, _layer: nn.Module, x: Tensor, _bias: Tensor | None = None) -> Tensor:
        return torch.zeros(*x.shape[:-1], self.config.partition_weight_shape[1], dtype=x.dtype)


class _NoExpertsKernel:
    """Takes all quantized experts."""

    @staticmethod
    def is_supported_config(*_arguments: Any) -> tuple[bool, str | None]:
        return True, None


def put_in_place() -> None:
    """Has vLLM take kernels that compute nothing where it has none; experts lie as on GPUs.

    Which layouts are possible at all is still vLLM's to say.
    """
    fp8_moe, packed = fp8.Fp8MoeBackend, int_wna16.WNA16MoEBackend
    backends: dict[Any, list[Any]] = {
        int_wna16: [packed.MARLIN, packed.TRITON, packed.EMULATION],
        int8: [int8.Int8MoeBackend.TRITON],
        # Those of CUTLASS are taken out of the list again.
        fp8: [fp8_moe.TRITON, fp8_moe.VLLM_CUTLASS, fp8_moe.BATCHED_VLLM_CUTLASS],
    }
    for oracle, in_order in backends.items():
        oracle._get_priority_backends = lambda *_, in_order=in_order: list(in_order)
        oracle.backend_to_kernel_cls = lambda _: [_NoExpertsKernel]
    register_linear_kernel(_NoLinearKernel, PlatformEnum.CPU, "mp")  # after those that there are
