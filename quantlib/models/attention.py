"""Causal attention, by rows of queries."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_ROWS = 128
"""Queries computed at once: they reach no key behind the last of them, so that almost half of the
products are left out, and their scores stay within a CPU's cache."""


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Mixes the values of each position and of those before it.

    Scores are taken through the softmax in float32 and rounded to the dtype of the values, as
    fused kernels do.

    Args:
        query: ``[batch, heads, sequence, head_dim]``.
        key: ``[batch, key_value_heads, sequence, head_dim]``; each serves consecutive query heads.
        value: Like ``key``.
        scale: Factor on the scores.
        window: Tokens that a position reaches back, itself included; None for all of them.
        softcap: Scores are bent to stay within plus and minus this; None leaves them.

    Returns:
        ``[batch, heads, sequence, head_dim]``.
    """
    length = query.shape[2]
    if window is not None and window >= length:
        window = None
    if query.device.type != "cpu" and softcap is None:
        return _fused(query, key, value, scale, window)
    heads, shared = query.shape[1], key.shape[1]
    # The heads that share keys become rows of one product.
    query = (query * scale).unflatten(1, (shared, heads // shared))
    positions = torch.arange(length, device=query.device)
    mixed = []
    for start in range(0, length, _ROWS):
        rows = positions[start : start + _ROWS]
        stop = start + len(rows)
        first = 0 if window is None else max(0, start - window + 1)
        keys = key[:, :, first:stop].transpose(-1, -2)
        scores = (query[:, :, :, start:stop].flatten(2, 3) @ keys).float()
        scores = scores.unflatten(2, (-1, len(rows)))
        if softcap is not None:
            scores = (scores / softcap).tanh_().mul_(softcap)
        # Without a window, only keys among these very positions can lie behind a query.
        masked_from = start if window is None else first
        hidden = _hidden_keys(rows, positions[masked_from:stop], window)
        bias = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)
        scores[..., masked_from - first :] += bias
        weights = scores.softmax(-1).to(value.dtype)
        part = weights.flatten(2, 3) @ value[:, :, first:stop]
        mixed.append(part.unflatten(2, (-1, len(rows))))
    return torch.cat(mixed, 3).flatten(1, 2)


def _fused(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    mask = None
    if window is not None:
        positions = torch.arange(query.shape[2], device=query.device)
        mask = ~_hidden_keys(positions, positions, window)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale
    )


def _hidden_keys(rows: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which keys each query does not see, bool ``[rows, keys]``."""
    distance = rows[:, None] - keys[None, :]
    hidden = distance < 0
    return hidden if window is None else hidden | (distance >= window)
