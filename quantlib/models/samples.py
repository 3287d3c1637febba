"""Calibration samples as what a model's forward is given, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def token_batches(tokens: Tensor, samples: int, device: torch.device) -> list[dict[str, Any]]:
    """Tokens alone.

    Args:
        tokens: int64 ``[samples, sequence]``, perhaps of no samples.
        samples: How many a batch has.
        device: Where they are wanted.
    """
    parts = tokens.split(samples) if len(tokens) else ()
    return [{"input_ids": part.to(device)} for part in parts]


def empty_batches(
    tokens: Tensor, samples: int, hidden_size: int, device: torch.device, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Hidden states of zeros that take no memory, where those that count come from elsewhere.

    Args:
        tokens: As of :func:`token_batches`; their number counts.
        samples: How many a batch has.
        hidden_size: Channels of hidden states.
        device: Where they are wanted.
        dtype: Of the hidden states.
    """
    zeros = torch.zeros((), dtype=dtype, device=device)
    return [
        {"inputs_embeds": zeros.expand(*part.shape, hidden_size)} for part in tokens.split(samples)
    ]


def one_by_one(
    samples: Iterable[Mapping[str, Tensor]], device: torch.device, dtype: torch.dtype
) -> Iterator[dict[str, Any]]:
    """Samples with images, each a batch; its pixels are freed when the next one is asked for.

    A forward that stands before a block would hold them to its end.

    Args:
        samples: What the model's own forward is given of each.
        device: Where they are wanted.
        dtype: Of the pixels.
    """
    for sample in samples:
        given = {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype, copy=True)
            for name, value in sample.items()
        }
        yield given
        for value in given.values():
            if value.is_floating_point():
                value.untyped_storage().resize_(0)
