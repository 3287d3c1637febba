"""HQQ's zero points against the paper's formula, and its rounding against the sums it promises."""

import pytest
import torch

from quantlib.quantizers import GroupInputs, HQQQuantizer, MinMaxQuantizer
from quantlib.quantizers.hqq_solver import half_quadratic_scales, round_balanced
from quantlib.quantizers.rounding import to_quantized_linear
from quantlib.quantizers.scales import range_scales
from quantlib.recipe import QuantizationSection, WeightScheme

SCHEMES = [
    WeightScheme(bits=4, group_size=32, symmetric=True),
    WeightScheme(bits=4, group_size=32, symmetric=False),
    WeightScheme(bits=8, group_size=-1, symmetric=False),
]


def heavy_tailed(rows: int, columns: int) -> torch.Tensor:
    normal = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return normal * (1 + normal.abs()) * 0.02 + 0.005


def test_zero_points_are_the_means_of_equation_five() -> None:
    weight = heavy_tailed(8, 64)
    scheme = WeightScheme(bits=4, group_size=32, symmetric=False)
    start = range_scales(weight, scheme, torch.bfloat16)
    # With p of 2 and a penalty of 10 nothing this small is forgiven: each turn is a plain mean.
    found = half_quadratic_scales(weight, scheme, torch.bfloat16, norm=0.7, iterations=1)
    groups = weight.unflatten(1, (2, 32))
    codes = (groups / start.scales[..., None] + start.zero_points[..., None]).round().clamp(0, 15)
    expected = (codes - groups / start.scales[..., None]).mean(-1).round().clamp(0, 15)
    assert torch.equal(found.zero_points, expected)
    assert torch.equal(found.scales, start.scales)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_errors_of_a_group_sum_to_nearly_nothing(scheme: WeightScheme) -> None:
    weight = heavy_tailed(48, 128)
    section = QuantizationSection(method="hqq", weights=scheme)
    made = HQQQuantizer(section).quantize({"x": weight}, GroupInputs(), torch.float32).linears["x"]
    plain = MinMaxQuantizer(section).quantize({"x": weight}, GroupInputs(), torch.float32)
    groups = made.scales.shape[1]

    def sums(restored: torch.Tensor) -> torch.Tensor:
        return (restored - weight).unflatten(1, (groups, -1)).sum(-1).abs() / made.scales

    # What is clipped cannot always be made up for: symmetric codes end at 7.
    share = 0.65 if scheme.symmetric else 0.95
    assert (sums(made.dequantize()) <= 0.51).double().mean() > share
    assert sums(made.dequantize()).mean() < 0.4 * sums(plain.linears["x"].dequantize()).mean()
    errors = [
        (linear.dequantize() - weight).square().mean() for linear in (made, plain.linears["x"])
    ]
    assert errors[0] < 1.35 * errors[1]


def test_no_weight_moves_further_than_to_its_other_neighbour() -> None:
    weight = heavy_tailed(16, 64)
    scheme = WeightScheme(bits=4, group_size=64, symmetric=False)
    scales = range_scales(weight, scheme, torch.float32)
    codes = round_balanced(weight, scales, scheme)
    restored = to_quantized_linear(codes, scales, scheme, torch.float32).dequantize()
    inside = (restored - weight).abs() / scales.scales.repeat_interleave(64, 1)
    assert (inside <= 1.0 + 1e-4).all()
    assert codes.max() <= 15


def test_linears_together_are_what_they_are_alone() -> None:
    section = QuantizationSection(method="hqq", weights=WeightScheme(bits=4, group_size=32))
    weights = {"a": heavy_tailed(8, 64), "b": heavy_tailed(24, 64) * 2}
    together = HQQQuantizer(section).quantize(weights, GroupInputs(), torch.bfloat16).linears
    for name, weight in weights.items():
        alone = HQQQuantizer(section).quantize({name: weight}, GroupInputs(), torch.bfloat16)
        assert torch.equal(together[name].codes, alone.linears[name].codes)


def test_a_constant_group_stays_finite() -> None:
    section = QuantizationSection(method="hqq", weights=WeightScheme(bits=4, group_size=32))
    weight = torch.zeros(4, 64)
    weight[1] = 0.25
    made = HQQQuantizer(section).quantize({"x": weight}, GroupInputs(), torch.bfloat16)
    restored = made.linears["x"].dequantize()
    assert restored.isfinite().all()
    torch.testing.assert_close(restored, weight, atol=0.04, rtol=0)
