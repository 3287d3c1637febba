"""Attention by rows against torch's own, and against the definition."""

import pytest
import torch
from torch.nn import functional

from quantlib.models.attention import causal_attention

LENGTHS = (1, 100, 128, 300)


def made(length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = ((2, 6, length, 16), (2, 2, length, 16), (2, 2, length, 16))
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_grouped_causal_attention(length: int) -> None:
    query, key, value = made(length)
    expected = functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(causal_attention(query, key, value, 0.3), expected)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("window", [1, 40, 1000])
def test_a_window_hides_what_is_too_far_back(length: int, window: int) -> None:
    query, key, value = made(length)
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    seen = (distance >= 0) & (distance < window)
    expected = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(causal_attention(query, key, value, 0.3, window), expected)


def test_a_softcap_bends_the_scores() -> None:
    query, key, value = made(150)
    keys, values = (x.repeat_interleave(3, 1) for x in (key, value))
    scores = 2.0 * (query @ keys.transpose(-1, -2) * 0.3 / 2.0).tanh()
    scores = scores.masked_fill(torch.ones(150, 150).triu(1).bool(), -torch.inf)
    expected = scores.softmax(-1) @ values
    found = causal_attention(query, key, value, 0.3, softcap=2.0)
    torch.testing.assert_close(found, expected)


def test_bfloat16_stays_close() -> None:
    query, key, value = (x.bfloat16() for x in made(300))
    expected = causal_attention(query.float(), key.float(), value.float(), 0.3)
    found = causal_attention(query, key, value, 0.3)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)
