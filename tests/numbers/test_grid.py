"""Grids against the dtypes and the package that define them."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization.quant_args import FP4_E2M1_DATA

from quantlib.numbers.grid import grid_of, range_factors
from quantlib.schemes import WeightScheme

FP8 = WeightScheme(type="float", bits=8, group_size=-1)
FP4 = WeightScheme(type="float", bits=4, group_size=16, scale="e4m3")
NONE = torch.zeros(())


def spread() -> torch.Tensor:
    """Numbers of many sizes, those between two values of a grid among them."""
    chance = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-4, 3, 20_000)
    ties = torch.arange(-64, 65) / 8
    return torch.cat([torch.randn(20_000, generator=chance) * sizes, ties, ties * 32])


def test_fp8_is_the_cast_of_torch_that_saturates() -> None:
    x = spread()
    expected = x.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    assert torch.equal(grid_of(FP8).nearest(x, NONE), expected)


def test_fp4_is_the_cast_of_compressed_tensors() -> None:
    x = spread()
    cast = FP4_E2M1_DATA.cast_to_fp4
    expected = getattr(cast, "_torchdynamo_orig_callable", cast)(x.clone())
    assert torch.equal(grid_of(FP4).nearest(x, NONE), expected)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_whole_numbers(bits: int, symmetric: bool) -> None:
    grid = grid_of(WeightScheme(bits=bits, symmetric=symmetric))
    x = spread()
    zero = float(1 << (bits - 1)) if symmetric else 1.0
    codes = (x.double().round() + zero).clamp(0, 2**bits - 1)
    values = grid.nearest(x, torch.tensor(zero))
    assert torch.equal(values.double(), codes - zero)
    assert torch.equal(grid.encode(values, torch.tensor(zero)), codes.to(torch.uint8))


@pytest.mark.parametrize("scheme", [FP8, FP4, WeightScheme()], ids=str)
def test_values_may_take_the_place_of_what_was_rounded(scheme: WeightScheme) -> None:
    grid, x = grid_of(scheme), spread()
    zeros = torch.tensor(8.0 if scheme.type == "int" else 0.0)
    expected = grid.nearest(x.clone(), zeros)
    assert grid.nearest(x, zeros, out=x) is x
    assert torch.equal(x, expected)
    assert torch.equal(grid.nearest(x.clone(), zeros), expected)


def test_searches_begin_with_the_whole_range() -> None:
    for scheme in (FP8, FP4, WeightScheme(), FP4.model_copy(update={"scale": "e8m0"})):
        factors = range_factors(scheme)
        assert factors[0] == 1.0
        assert len(set(factors)) == len(factors)
