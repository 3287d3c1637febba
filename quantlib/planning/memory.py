"""How much memory the steps that compute will take at their peak.

The formulas count what the code holds (docs/planning.md writes them out). Inside a quantize worker
the calibration tokens count most: their residual stream, the input of the group of linears at hand,
and, on a CPU, the holes that the stream's earlier versions leave in the heap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantlib.outlier_suppression.smoothing import SAMPLE_TOKENS
from quantlib.planning.hardware import GIB, Hardware
from quantlib.planning.model import ModelSizes
from quantlib.quantizers import batches
from quantlib.quantizers.batches import HESSIAN_COPIES, WEIGHT_COPIES

BASE = 810 << 20
"""A worker with torch and transformers, before it has read anything. With the build that has CUDA's
libraries, as PyPI has it, importing both takes 720 MiB (torch alone 510), and what the first walk
imports and allocates the rest; with the build for CPUs both take 540."""

BASE_WITHOUT_TORCH = 60 << 20
"""A step that computes nothing."""

GPU_HOST_BASE = 4 * GIB
"""The same with CUDA's libraries."""

GPU_DEVICE_BASE = 1 * GIB
"""CUDA's context, and workspaces of its libraries."""

_STREAM_COPIES = 3
"""The residual stream in float32, and the holes that its earlier versions leave in the heap: from
one to two and a half times its size, by the machine and by the run."""

_TRIAL_WEIGHT_COPIES = 8
"""Matrices of the size of a group's weights that trying a strength of smoothing holds at once."""

_TRIAL_OUTPUTS = 6 * SAMPLE_TOKENS
"""Rows of a group's outputs, all copies together, that it holds."""

_TOWER_COPIES = 4
"""What a tower gives, held to the end of a forward: of Qwen3-VL as many tensors like hidden states,
and others give fewer."""

_VLLM_HOST = 4 * GIB
"""With CUDA's libraries, of each GPU's process."""

_VLLM_CPU = 1670 << 20
"""Validate on a CPU with a model of no size: the step has imported torch, its worker vLLM, and the
worker's fork holds vLLM's engine and its cache of keys and values."""

_WEIGHT_COPIES_IN_VLLM = 2
"""The weights, and the file that they are read from, whose pages can be taken back."""

_LOGIT_COPIES = 2
"""Of a window, in float32: what a head gives, and their logarithms."""

_HEADROOM = 1.2
"""What a container's limit is above the peak that is expected."""


@dataclass(frozen=True)
class Memory:
    """Peaks in bytes: of the host's memory, and of the GPU's (0 without one)."""

    host: int
    device: int = 0


def calibrate_memory(
    sizes: ModelSizes,
    tokens: int,
    hardware: Hardware,
    product_bytes: int,
    *,
    trials: bool = False,
) -> Memory:
    """The peak of the calibrate step.

    Args:
        sizes: The model's.
        tokens: Of the calibration text; 0 for a method that needs none.
        hardware: What it runs on.
        product_bytes: Bytes of a number in matrix products.
        trials: Whether strengths of smoothing are tried on each group of linears.
    """
    if not tokens:
        return Memory(BASE_WITHOUT_TORCH)
    hidden = tokens * sizes.hidden_size
    stored = hidden * sizes.stored_bytes
    block = sizes.largest_block_elements
    seen, tower = _of_images(sizes, hidden, product_bytes)
    embedding = sizes.embedding_bytes + stored
    tried = 0
    if trials:
        tried = max(
            (
                4 * group.all_rows * (_TRIAL_WEIGHT_COPIES * group.columns + _TRIAL_OUTPUTS)
                for group in sizes.groups
            ),
            default=0,
        )
    work = block * product_bytes + tried
    if not hardware.is_gpu:
        boundary = 4 * hidden + 2 * stored + work
        return Memory(BASE + seen + max(embedding + tower, boundary))
    device = GPU_DEVICE_BASE + seen + hidden * product_bytes
    device += max(block * product_bytes + work, tower)
    return Memory(GPU_HOST_BASE + max(embedding, 2 * stored), device)


def quantize_memory(
    sizes: ModelSizes, tokens: int, hardware: Hardware, product_bytes: int
) -> Memory:
    """The peak of a quantize worker; arguments as of :func:`calibrate_memory`."""
    block = sizes.largest_block_elements
    hidden = tokens * sizes.hidden_size
    most = experts_at_once(sizes, hardware)
    held = 0
    for group in sizes.groups:
        at_once = group.together(most)
        own = tokens * group.columns * product_bytes * min(at_once, group.routed)
        rows = group.all_rows if group.experts else group.largest_rows
        own += at_once * WEIGHT_COPIES * 4 * rows * group.columns
        if tokens:
            own += at_once * HESSIAN_COPIES * 4 * group.columns**2
        held = max(held, own)
    codes = block  # a byte each until the block is written
    seen, tower = _of_images(sizes, hidden, product_bytes)
    outside = tower + sizes.embedding_bytes * bool(tower)
    outside = max([outside, *(batches.held_in_pieces(*shape) for shape in sizes.outer)])
    if not hardware.is_gpu:
        stream = _STREAM_COPIES * 4 * hidden
        return Memory(BASE + seen + stream + max(held + block * product_bytes + codes, outside))
    device = GPU_DEVICE_BASE + seen + 2 * hidden * product_bytes
    device += max(held + block * product_bytes + codes, outside)
    host = GPU_HOST_BASE + 2 * hidden * sizes.stored_bytes + 2 * block * sizes.stored_bytes
    return Memory(host, device)


def measure_memory(sizes: ModelSizes, hardware: Hardware, product_bytes: int) -> Memory:
    """The peak of a measure worker: a block, what is rounded of it, and what it is rounded by.

    Args:
        sizes: The model's.
        hardware: What it runs on.
        product_bytes: Bytes of a number in matrix products.
    """
    block = sizes.largest_block_elements
    rounded = max((group.all_rows * group.columns for group in sizes.groups), default=0)
    held = 2 * block * product_bytes + WEIGHT_COPIES * 4 * rounded
    if not hardware.is_gpu:
        return Memory(BASE + held)
    return Memory(GPU_HOST_BASE + 2 * block * sizes.stored_bytes, GPU_DEVICE_BASE + held)


def _of_images(sizes: ModelSizes, hidden: int, product_bytes: int) -> tuple[int, int]:
    """Bytes of what a tower gives, and of the tower; 0 without images.

    Args:
        sizes: The model's.
        hidden: Numbers in the hidden states of all tokens.
        product_bytes: Bytes of a number in matrix products.
    """
    if not sizes.tower_elements:
        return 0, 0
    return _TOWER_COPIES * hidden * product_bytes, sizes.tower_elements * product_bytes


def experts_at_once(sizes: ModelSizes, hardware: Hardware) -> int:
    """How many experts are quantized together, where a model has as many."""
    shapes = {(group.all_rows, group.columns) for group in sizes.groups if group.experts}
    return batches.experts_at_once(shapes, "cuda" if hardware.is_gpu else "cpu")


def validate_memory(
    sizes: ModelSizes,
    window: int,
    hardware: Hardware,
    product_bytes: int,
    gpus: int = 1,
    *,
    streamed: bool = False,
) -> Memory:
    """About what vLLM takes with the larger of the two models that it holds.

    Args:
        sizes: The model's.
        window: Tokens of the held-out text that are judged at once.
        hardware: What it runs on.
        product_bytes: Bytes of a number in matrix products.
        gpus: GPUs that share the model; the peak is that of each.
        streamed: Whether the original is read block by block, so that vLLM holds the quantized one
            alone.
    """
    loaded = sizes.total_bytes * max(1, product_bytes // sizes.stored_bytes)
    if streamed:
        loaded = sizes.quantized_bytes
    if hardware.is_gpu:
        host = _VLLM_HOST * gpus + loaded // 4 + 8 * GIB
        return Memory(host, loaded // gpus + 4 * GIB)
    vocabulary = sizes.embedding_bytes // max(1, sizes.hidden_size * sizes.stored_bytes)
    logits = 4 * window * vocabulary
    return Memory(_VLLM_CPU + _WEIGHT_COPIES_IN_VLLM * loaded + _LOGIT_COPIES * logits)


def quantity(bytes_needed: int) -> str:
    """Memory as a container's limit, with headroom: ``12Gi``."""
    return f"{max(1, math.ceil(bytes_needed * _HEADROOM / GIB))}Gi"
