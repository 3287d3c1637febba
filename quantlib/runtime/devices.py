"""Where and in which portions models are computed."""

from __future__ import annotations

import platform
from typing import Any

import torch

from quantlib.errors import InvalidInputError
from quantlib.runtime.surroundings import cpu_name

_BATCH_TOKENS = {"cpu": 512, "cuda": 16384}
"""Tokens computed at once: enough to keep the kernels busy, few enough for a CPU's caches, and for
glibc to reuse freed memory instead of mapping it anew."""


def resolve_device(name: str, gpus: int = 1) -> torch.device:
    """The device that a step runs on.

    Args:
        name: auto (an accelerator where there is one), cpu, cuda or cuda:1.
        gpus: What a model is to be spread over. A device with a number is one GPU.

    Raises:
        InvalidInputError: The device is unknown or not there, or fewer than the GPUs asked for.
    """
    if gpus > 1 and name.startswith("cuda:"):
        raise InvalidInputError.one(
            f"device {name!r}",
            f"is one GPU, and models are to be spread over {gpus}",
            f"use cuda, of which CUDA_VISIBLE_DEVICES says which, or {name} with one GPU",
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind = name.partition(":")[0]
    if kind not in _BATCH_TOKENS:
        raise InvalidInputError.one(f"device {name!r}", "is unknown", "use auto, cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError.one(f"device {name!r}", "torch sees no CUDA device", "use cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidInputError.one(f"device {name!r}", "is unknown", "use cuda:0") from None
    if device.index is not None and device.index >= max(1, torch.cuda.device_count()):
        what = f"torch sees {torch.cuda.device_count()} CUDA devices"
        raise InvalidInputError.one(f"device {name!r}", what, "count from cuda:0")
    return device


def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU has instructions for products in a dtype, or emulates them."""
    if dtype is torch.float32:
        return True
    if platform.machine() != "x86_64":
        return False
    if torch.cpu._is_amx_tile_supported():
        return True
    return dtype is torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()


def product_dtype(device: torch.device, stored: torch.dtype) -> torch.dtype:
    """The dtype of a model's matrix products, which are summed in float32.

    Args:
        device: Where it is computed.
        stored: The dtype of its weights.

    Returns:
        The weights' own where the hardware is fast with it; else float32 on a CPU and bfloat16 on
        an accelerator.
    """
    if device.type == "cpu":
        return stored if cpu_multiplies(stored) else torch.float32
    return torch.bfloat16 if stored is torch.float32 else stored


def numerics(device: torch.device, stored: torch.dtype) -> dict[str, Any]:
    """What decides how products and sums are rounded: equal numerics, code and inputs, equal bytes.

    Args:
        device: Where it is computed.
        stored: The dtype of the model's weights.

    Returns:
        JSON values: the kind of device, what it is, the dtype of the products, torch's version and
        build, and on a CPU the number of threads, which decides the order of sums.
    """
    found: dict[str, Any] = {
        "device": device.type,
        "products": str(product_dtype(device, stored)).removeprefix("torch."),
        "torch": str(torch.__version__),
    }
    if device.type == "cuda":
        return found | {"hardware": torch.cuda.get_device_name(device)}
    # Math libraries choose their kernels by vendor and instructions.
    vendor = " ".join(cpu_name().split()[:2])
    return found | {
        "hardware": f"{vendor} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


def batch_samples(device: torch.device, sequence: int) -> int:
    """How many windows of so many tokens are computed at once."""
    return max(1, _BATCH_TOKENS[device.type] // sequence)
