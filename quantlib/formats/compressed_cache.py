"""What a compressed-tensors config says of attention: ``kv_cache_scheme``, and groups by class.

| tensor | dtype | shape | content |
|---|---|---|---|
| `k_scale`, `v_scale` | float32 | `[1]`, or `[key-value heads, 1, 1]` | of keys and values |
| `q_scale` | float32 | `[1]`, or `[heads, 1, 1]` | of queries, where they are rounded |

They stand beside the projections, as `model.layers.0.self_attn.k_scale`. vLLM takes the three from
there for every module of attention, and passes over a group for one class whose name ends with
Attention; to the package's own loader the group says that queries are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantlib.schemes import CacheScheme

EXACT_FORMAT = "dense"
"""What the config names where no weight is quantized."""

CACHE_SCALES = ("k_scale", "v_scale", "q_scale")

_PER_HEAD = "attn_head"
_OF_CLASS = "Attention"
"""How the name of a class ends that vLLM takes for one of attention."""


def cache_config(cache: CacheScheme | None) -> dict[str, Any]:
    """What goes into the config for keys and values; nothing where they keep the model's dtype."""
    return {} if cache is None else {"kv_cache_scheme": _arguments(cache)}


def attention_groups(cache: CacheScheme | None, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The groups that say of modules of attention that queries are rounded.

    Args:
        cache: How keys and values are kept.
        classes: Those of transformers that keep them.
    """
    if cache is None or not cache.queries:
        return []
    return [
        {"targets": [name], "weights": None, "input_activations": _arguments(cache)}
        for name in classes
        if name.endswith(_OF_CLASS)
    ]


def is_of_attention(group: Mapping[str, Any]) -> bool:
    """Whether a group is one of :func:`attention_groups`."""
    return group["weights"] is None


def of_attention_alone(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``quantization_config`` that says the same of attention, and that all weights are exact.

    Args:
        config: Of a checkpoint of compressed-tensors.
    """
    groups = {
        name: group for name, group in config["config_groups"].items() if is_of_attention(group)
    }
    return {**config, "format": EXACT_FORMAT, "ignore": ["re:.*"], "config_groups": groups}


def read_cache(config: Mapping[str, Any]) -> CacheScheme | None:
    """How a ``quantization_config`` of ours says that keys and values are kept."""
    stated = config.get("kv_cache_scheme")
    if not stated:
        return None
    return CacheScheme(
        per_head=stated.get("strategy") == _PER_HEAD,
        queries=any(map(is_of_attention, config["config_groups"].values())),
    )


def _arguments(cache: CacheScheme) -> dict[str, Any]:
    return {
        "num_bits": 8,
        "type": "float",
        "strategy": _PER_HEAD if cache.per_head else "tensor",
        "symmetric": True,
        "dynamic": False,
    }
