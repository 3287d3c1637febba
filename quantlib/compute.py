"""Where and in which portions models are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantlib.errors import InvalidInputError

if TYPE_CHECKING:
    from quantlib.models.streamed import StreamedModel

_BATCH_TOKENS = {"cpu": 512, "cuda": 16384}
"""Tokens computed at once: enough to keep the kernels busy, few enough for a CPU's caches, and for
glibc to reuse freed memory instead of mapping it anew."""


def resolve_device(name: str) -> torch.device:
    """The device that a step runs on.

    Args:
        name: auto (an accelerator where there is one), cpu, cuda or cuda:1.

    Raises:
        InvalidInputError: The device is unknown or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind = name.partition(":")[0]
    if kind not in _BATCH_TOKENS:
        raise InvalidInputError.one(f"device {name!r}", "is unknown", "use auto, cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError.one(f"device {name!r}", "torch sees no CUDA device", "use cpu")
    return torch.device(name)


def split_batches(hidden: Tensor, model: StreamedModel) -> list[Tensor]:
    """Cuts hidden states into batches on the model's device, in its dtype of computation.

    Args:
        hidden: ``[samples, sequence, hidden_size]``.
        model: Says where and how it is computed.
    """
    samples = max(1, _BATCH_TOKENS[model.device.type] // hidden.shape[1])
    return [part.to(model.device, model.dtype) for part in hidden.split(samples)]


@contextmanager
def activation_precision() -> Iterator[None]:
    """Lets float32 matrix products round their inputs where the hardware is faster with it.

    For running models and collecting Hessians: a CPU with bfloat16 instructions rounds inputs to
    bfloat16 and an accelerator to TF32, which the activations of released models are exact in or
    close to; sums stay in float32. Other hardware computes as always.
    """
    # torch's type hints do not know mkldnn's, hence the ignored error.
    backends = (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend, precision in zip(backends, ("bf16", "tf32"), strict=True):
            backend.fp32_precision = precision
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
