"""Integer codes packed into int32 words, the lowest bits first."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_int32(codes: Tensor, bits: int) -> Tensor:
    """Packs along the last dimension.

    Args:
        codes: uint8 ``[..., n]``, each below ``2 ** bits``.
        bits: A divisor of 32.

    Returns:
        int32 ``[..., ceil(n * bits / 32)]``; missing codes are zero.
    """
    per_word = 32 // bits
    padding = -codes.shape[-1] % per_word
    words = (
        torch.nn.functional.pad(codes, (0, padding)).unflatten(-1, (-1, per_word)).to(torch.int32)
    )
    packed = torch.zeros_like(words[..., 0])
    for place in range(per_word):
        packed |= words[..., place] << (bits * place)
    return packed.contiguous()


def unpack_int32(words: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of :func:`pack_int32`.

    Args:
        words: int32 ``[..., m]``.
        bits: A divisor of 32.
        count: Codes in the last dimension of the result.

    Returns:
        uint8 ``[..., count]``.
    """
    places = torch.arange(0, 32, bits, device=words.device, dtype=torch.int32)
    codes = (words[..., None] >> places) & ((1 << bits) - 1)
    return codes.flatten(-2)[..., :count].to(torch.uint8).contiguous()
