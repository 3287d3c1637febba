"""What of keys and values in FP8 goes with a model. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from quantlib.checks.kinds import kind_of
from quantlib.errors import Problem
from quantlib.models.family import ModelFamily
from quantlib.models.layout import Attention
from quantlib.quantization import QuantizationSection
from quantlib.runtime.cpus import has_avx512

_FIELD = "quantization.kv_cache"
_EXACT = "leave kv_cache out"
_CPU_WIDTHS = 32
"""vLLM's attention for CPUs keeps FP8 for heads whose width is a multiple of this."""


def cache_problems(section: QuantizationSection, adapter: ModelFamily) -> Iterator[Problem]:
    """Why a model's keys and values cannot be kept as a recipe says.

    Layers of linear attention and convolutions keep states, not keys and values: they are left
    alone.
    """
    if section.cache is None or adapter.layout.obstacles:
        return
    layers = attending(adapter)
    unseen = [
        f"{adapter.block_prefix(block)}{linear}"
        for block in range(adapter.blocks)
        if not adapter.layout.attention(block)
        for linear in adapter.linears(block)
        if kind_of(linear) == "attention"
    ]
    if latent := [each for each in layers if each.latent]:
        yield Problem(
            _FIELD,
            f"{latent[0].type} keeps one vector that keys and values are made of (MLA), for which "
            "vLLM takes no scales from compressed-tensors",
            f"{_EXACT}; vllm serve --kv-cache-dtype fp8 keeps it in FP8 with the scale 1",
        )
    elif unseen:
        what = f"transformers does not hand over the keys that {unseen[0]} is for"
        yield Problem(_FIELD, f"{what}, so that no scales can be found", _EXACT)
    elif not layers:
        yield Problem(_FIELD, "the model has no layer that keeps keys and values", _EXACT)
    elif section.cache.per_head and len({each.heads for each in layers}) > 1:
        counts = ", ".join(map(str, sorted({each.heads for each in layers})))
        yield Problem(
            _FIELD,
            f"layers have different numbers of key-value heads ({counts}), and vLLM cuts scales "
            "per head by one number for all",
            "set it to fp8",
        )


def cache_cpu_problem(section: QuantizationSection, adapter: ModelFamily) -> str | None:
    """Why vLLM cannot keep keys and values in FP8 on this machine's CPU; None where it can."""
    if section.cache is None:
        return None
    if not has_avx512():
        return "vLLM keeps keys and values in FP8 on CPUs with AVX-512 only"
    for each in attending(adapter):
        if each.width % _CPU_WIDTHS:
            return (
                f"vLLM keeps keys and values in FP8 on a CPU where heads have a multiple of "
                f"{_CPU_WIDTHS} channels, and those of {each.type} have {each.width}"
            )
    return None


def attending(adapter: ModelFamily) -> list[Attention]:
    """The modules of all blocks that keep keys and values."""
    return [each for block in range(adapter.blocks) for each in adapter.layout.attention(block)]
