"""What vLLM 0.32 does with a scheme that a GPU has no instructions for. Imports no torch.

From the kernels' own conditions, ``vllm/model_executor/kernels/linear`` and
``vllm/v1/attention/backends``, and from ``CompressedTensorsConfig._get_scheme_from_parts``; not
run. What int8 does on Blackwell is vllm-project/vllm's issue 54311.
"""

from __future__ import annotations

from quantlib.schemes import CacheScheme, LinearScheme

ADA, HOPPER, BLACKWELL = 89, 90, 100
"""Compute capabilities, the first of a generation."""


def on_gpu(scheme: LinearScheme, capability: int) -> str | None:
    """What serving a scheme lacks on a GPU, and what is done instead; None where nothing is.

    Args:
        scheme: Of some linears.
        capability: The GPU's, as 90.
    """
    weights, activations = scheme.weights, scheme.activations
    if weights.type == "int":
        if activations == "fp8" and capability != HOPPER:
            return "vLLM has a kernel on Hopper GPUs only, and refuses the checkpoint on others"
        if weights.bits == 8 and not weights.symmetric and capability != HOPPER:
            return "vLLM has a kernel on Hopper GPUs only, and refuses the checkpoint on others"
        if weights.bits == 4 and activations == "int8":
            return (
                "vLLM takes a kernel for the weights alone before that of humming-kernels, and "
                "leaves inputs in 16 bits"
            )
        if weights.bits == 2:
            return "vLLM has a kernel where the package humming-kernels is installed"
        if weights.bits == 8 and activations != "none" and capability >= BLACKWELL:
            return (
                "vLLM takes a kernel for linears outside of experts that has no int8 on Blackwell "
                "GPUs, and fails when it starts; FP8_DYNAMIC is served"
            )
        return None
    if weights.type != "float":  # of another package, whose kernels nobody knows here
        return None
    if weights.bits == 8 and weights.scale == "model":
        needed, what = ADA, "multiplies no FP8"
    else:
        needed, what = BLACKWELL, f"multiplies no {'FP4' if weights.bits == 4 else 'MXFP8'}"
    if capability >= needed or activations == "none":
        return None
    return (
        f"the GPU {what}: vLLM serves the weights as they are (Marlin), with inputs of 16 bits, "
        "which saves memory, and time where memory is what takes it"
    )


def cache_on_gpu(cache: CacheScheme, capability: int) -> str | None:
    """What keeping keys and values so lacks on a GPU; None where nothing is lacking.

    Args:
        cache: How they are kept.
        capability: The GPU's, as 90.
    """
    if cache.per_head and capability < HOPPER:
        return (
            "vLLM reads a scale per head in FlashAttention 3 and 4, which are for Hopper and "
            "Blackwell GPUs, and refuses the checkpoint on older ones"
        )
    return None
