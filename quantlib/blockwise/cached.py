"""What a block's attention keeps of a text: its largest magnitudes, and the scales for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quantlib.models.layout import Attention, SharedInput
from quantlib.numbers.cached import CacheScales
from quantlib.schemes import CacheScheme

_PARTS = ("queries", "keys", "values")


class CachedMaxima:
    """The largest magnitude of every channel of queries, keys and values, in one block."""

    def __init__(self) -> None:
        self._found: dict[str, Tensor] = {}

    def __call__(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Looks at what a module hands over, ``[samples, heads, tokens, width]`` each."""
        for part, x in zip(_PARTS, (query, key, value), strict=True):
            name = f"{attention.name}.{part}"
            largest = x.float().abs().amax((0, 2))
            known = self._found.get(name)
            self._found[name] = largest if known is None else torch.maximum(known, largest)

    def tensors(self) -> dict[str, Tensor]:
        """float32 ``[heads, width]`` by module and what it is of: ``self_attn.keys``."""
        return {name: largest.cpu() for name, largest in self._found.items()}


def cache_scales(
    attention: Attention,
    inputs: Sequence[SharedInput],
    maxima: Mapping[str, Tensor],
    divided: Mapping[str, Tensor],
    scheme: CacheScheme,
) -> CacheScales:
    """The scales of a module of attention.

    Args:
        attention: The module.
        inputs: The shared inputs of its block.
        maxima: Of the original model, as :class:`CachedMaxima` gives them.
        divided: What outputs of linears have been divided by since, float32 ``[out_features]`` by
            name within the block: smaller values are kept where scales were folded into what
            gives them.
        scheme: What has a scale of its own.
    """
    queries, keys, values = (maxima[f"{attention.name}.{part}"] for part in _PARTS)
    for shared in inputs:
        producer = shared.producer
        if producer is None or producer.norm or producer.name not in divided:
            continue
        if producer.name.startswith(f"{attention.name}."):
            start = producer.first_row
            divisors = divided[producer.name][start : start + values.numel()]
            values = values / divisors.to(values.device).reshape(values.shape)
    return CacheScales.of(scheme, keys, values, queries)
