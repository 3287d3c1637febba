"""vLLM's worker for CPUs that emulate products in 16 bits. Imported by vLLM, in its own processes.

An engine with one device runs its worker in the process that made it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm import _custom_ops as ops
from vllm.v1.worker.cpu_worker import CPUWorker


class Float32CpuWorker(CPUWorker):
    """A worker whose oneDNN products run in float32."""

    def load_model(self, **options: Any) -> None:
        """Loads the model, whose weights are prepared for the products then."""
        _multiply_in_float32()
        super().load_model(**options)


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
