"""Codes packed into words and bytes, the lowest bits first."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def pack_int32(codes: Tensor, bits: int) -> Tensor:
    """Packs along the last dimension.

    Args:
        codes: uint8 ``[..., n]``, each below ``2 ** bits``.
        bits: 1 to 8. Where they do not divide 32, the highest bits of a word stay unused.

    Returns:
        int32 ``[..., ceil(n / (32 // bits))]``; missing codes are zero.
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
        bits: 1 to 8.
        count: Codes in the last dimension of the result.

    Returns:
        uint8 ``[..., count]``.
    """
    places = bits * torch.arange(32 // bits, device=words.device, dtype=torch.int32)
    codes = (words[..., None] >> places) & ((1 << bits) - 1)
    return codes.flatten(-2)[..., :count].to(torch.uint8).contiguous()


def unpack_stream(words: Tensor, bits: int, count: int) -> Tensor:
    """Codes that lie bit behind bit, across the ends of words, as GPTQ has 3 bits.

    Args:
        words: int32 ``[..., m]``, where ``m`` is a multiple of ``bits``.
        bits: 1 to 8.
        count: Codes in the last dimension of the result, ``32 * m / bits`` at most.

    Returns:
        uint8 ``[..., count]``.
    """
    if 32 % bits == 0:
        return unpack_int32(words, bits, count)
    # 32 codes fill as many words as a code has bits; each lies in one word or in two.
    whole = words.unflatten(-1, (-1, bits)).to(torch.int64) & 0xFFFF_FFFF
    starts = bits * torch.arange(32, device=words.device)
    first, shift = starts // 32, starts % 32
    beyond = torch.cat([whole[..., 1:], torch.zeros_like(whole[..., :1])], dim=-1)
    codes = (whole | beyond << 32)[..., first] >> shift & ((1 << bits) - 1)
    return codes.flatten(-2)[..., :count].to(torch.uint8).contiguous()


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What the codes of FP4 stand for."""


def pack_floats(numbers: Tensor, values: Sequence[float]) -> Tensor:
    """Floating point numbers of few bits, bit behind bit, the lowest first.

    Args:
        numbers: What codes stand for, ``[..., n]``; the bits of ``n`` of them fill bytes.
        values: What each code stands for: the first half in order, the second half less than zero,
            as :meth:`quantlib.grids.values.FloatGrid.by_code` has them.

    Returns:
        uint8 ``[..., n * bits / 8]``.
    """
    bits, numbers = len(values).bit_length() - 1, numbers.float()
    magnitudes = torch.tensor(values[: len(values) // 2], device=numbers.device)
    codes = torch.searchsorted(magnitudes, numbers.abs()).to(torch.uint8)
    codes |= numbers.signbit().to(torch.uint8) << (bits - 1)
    count, size = 8 // math.gcd(8, bits), bits // math.gcd(8, bits)
    whole = codes.unflatten(-1, (-1, count))
    packed = torch.zeros(*whole.shape[:-1], size, dtype=torch.uint8, device=codes.device)
    for place in range(count):
        byte, shift = divmod(place * bits, 8)
        packed[..., byte] |= whole[..., place] << shift
        if shift + bits > 8:
            packed[..., byte + 1] |= whole[..., place] >> (8 - shift)
    return packed.flatten(-2)


def unpack_floats(packed: Tensor, values: Sequence[float]) -> Tensor:
    """The inverse of :func:`pack_floats`.

    Returns:
        bfloat16 ``[..., n]``, which holds them exactly.
    """
    bits = len(values).bit_length() - 1
    count, size = 8 // math.gcd(8, bits), bits // math.gcd(8, bits)
    whole, codes = packed.unflatten(-1, (-1, size)), []
    for place in range(count):
        byte, shift = divmod(place * bits, 8)
        code = whole[..., byte] >> shift
        if shift + bits > 8:
            code = code | whole[..., byte + 1] << (8 - shift)
        codes.append(code & (len(values) - 1))
    table = torch.tensor(values, dtype=torch.bfloat16, device=packed.device)
    return table[torch.stack(codes, dim=-1).to(torch.int32)].flatten(-2)


def unpack_e2m1(pairs: Tensor) -> Tensor:
    """FP4 numbers, two to a byte, the lower half first: bfloat16 ``[..., 2 * n]``."""
    return unpack_floats(pairs, E2M1)


def pack_e2m1(numbers: Tensor) -> Tensor:
    """The inverse of :func:`unpack_e2m1`."""
    return pack_floats(numbers, E2M1)
