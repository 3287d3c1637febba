"""Scales against those of compressed-tensors."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization.utils import generate_gparam
from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales

from quantlib.numbers.grid import grid_of
from quantlib.numbers.scaling import decode_scales, encode_scales, nearest_scales, overall_scale
from quantlib.schemes import WeightScheme

NVFP4 = WeightScheme(type="float", bits=4, group_size=16, scale="e4m3")
MX = [WeightScheme(type="float", bits=bits, group_size=32, scale="e8m0") for bits in (4, 8)]


@pytest.mark.parametrize("scheme", MX, ids=["mxfp4", "mxfp8"])
def test_powers_of_two(scheme: WeightScheme) -> None:
    chance = torch.Generator().manual_seed(0)
    edges = torch.tensor([0.875, 1.0, 1.5, 1.75, 1.7499, 1.9999, 7.0, 6.9999, 448.0])
    widths = torch.cat([torch.rand(500, generator=chance) * torch.logspace(-9, 4, 500), edges])
    scales = nearest_scales(widths, scheme, grid_of(scheme), torch.bfloat16, None)
    stored = encode_scales(scales, scheme, torch.bfloat16, None)
    expected = generate_mx_scales(widths, scheme.bits).to(torch.uint8)
    assert torch.equal(stored, expected)
    assert torch.equal(decode_scales(stored, scheme, None), scales)


def test_fp8_under_one_number() -> None:
    weights = torch.randn(2, 32, 64, generator=torch.Generator().manual_seed(0))
    grid = grid_of(NVFP4)
    overall = overall_scale(weights, NVFP4, grid)
    assert overall is not None
    for own, weight in zip(overall, weights, strict=True):
        expected = generate_gparam(weight.min(), weight.max())
        torch.testing.assert_close(own.flatten(), expected)
    widths = weights.unflatten(-1, (-1, 16)).abs().amax(-1)
    scales = nearest_scales(widths, NVFP4, grid, torch.bfloat16, overall)
    stored = encode_scales(scales, NVFP4, torch.bfloat16, overall)
    expected = (widths / 6 * overall).to(torch.float8_e4m3fn).float()
    # One of the two is divided first; no scale is further than the next FP8 number.
    assert (stored.float() - expected).abs().max() <= expected.max() / 8
    assert (stored.float() == expected).float().mean() > 0.99
    assert torch.equal(decode_scales(stored, NVFP4, overall), scales)


def test_weights_of_zeros_have_scales_that_can_be_divided_by() -> None:
    weights = torch.zeros(1, 4, 32)
    for scheme in (NVFP4, *MX, WeightScheme()):
        grid = grid_of(scheme)
        overall = overall_scale(weights, scheme, grid)
        scales = nearest_scales(torch.zeros(1, 4, 2), scheme, grid, torch.float16, overall)
        assert (scales > 0).all()
        assert scales.isfinite().all()
        stored = encode_scales(scales, scheme, torch.float16, overall)
        assert torch.equal(decode_scales(stored, scheme, overall), scales)
