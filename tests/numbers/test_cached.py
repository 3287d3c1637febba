from __future__ import annotations

import pytest
import torch

from quantlib.numbers.cached import CacheScales, round_cached
from quantlib.schemes import CacheScheme


def in_fp8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """As torch's own FP8 numbers have it."""
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


@pytest.mark.parametrize("shape", [(1,), (3, 1, 1)])
def test_numbers_are_those_of_fp8(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 50, 64, generator=generator) * 10
    scale = torch.rand(shape, generator=generator) / 20 + 0.01
    assert torch.equal(round_cached(x, scale), in_fp8(x, scale))
    assert round_cached(x.bfloat16(), scale).dtype is torch.bfloat16


def test_the_largest_magnitude_becomes_the_largest_number() -> None:
    keys = torch.tensor([[1.0, 896.0], [448.0, 2.0]])
    values, queries = torch.tensor([[4.48, 0.0], [0.0, 0.0]]), torch.full((4, 2), 44.8)
    layer = CacheScales.of(CacheScheme(), keys, values, queries)
    assert layer.keys.tolist() == [2.0]
    assert layer.values.tolist() == pytest.approx([0.01])
    assert layer.queries is None
    head = CacheScales.of(CacheScheme(per_head=True, queries=True), keys, values, queries)
    assert head.keys.tolist() == [[[2.0]], [[1.0]]]
    assert head.values.flatten().tolist() == pytest.approx([0.01, 1.0]), "zeros have the scale 1"
    assert head.queries is not None
    assert head.queries.shape == (4, 1, 1)
    assert head.queries.flatten().tolist() == pytest.approx([0.1] * 4)


def test_queries_are_rounded_only_where_they_have_scales() -> None:
    x, one = torch.full((1, 1, 1, 1), 17.0), torch.ones(1)
    assert [each.item() for each in CacheScales(one, one).round(x, x, x)] == [17.0, 16.0, 16.0]
    assert [each.item() for each in CacheScales(one, one, one).round(x, x, x)] == [16.0] * 3
