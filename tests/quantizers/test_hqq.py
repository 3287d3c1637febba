"""HQQ's representations against an exhaustive search for them."""

import itertools
from typing import Any

import pytest
import torch
from rounding import nearest, of_first, ranged

from quantlib.checks.scheme import needs_hidden_states
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import HQQQuantizer, InputStatistics, MinMaxQuantizer
from quantlib.quantizers.hqq_solver import half_quadratic_scales
from quantlib.quantizers.rounding import round_to_nearest
from quantlib.quantizers.scales import GroupScales
from quantlib.schemes import WeightScheme

SCHEMES = [
    WeightScheme(bits=4, group_size=32, symmetric=True),
    WeightScheme(bits=4, group_size=32, symmetric=False),
    WeightScheme(bits=8, group_size=-1, symmetric=False),
]


def solved(weight: torch.Tensor, *how: Any, **options: Any) -> GroupScales:
    """The solution for one matrix whose channels count alike."""
    ones = torch.ones(1, weight.shape[1])
    return of_first(half_quadratic_scales(weight[None], [len(weight)], ones, *how, **options))


def heavy_tailed(rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(rows, columns, generator=generator)
    return normal * (1 + normal.abs()) * 0.02 + 0.005


def error(weight: torch.Tensor, scales: GroupScales, scheme: WeightScheme) -> torch.Tensor:
    return nearest(weight, scales, scheme, torch.bfloat16).dequantize() - weight


def objective(
    weight: torch.Tensor, scales: GroupScales, scheme: WeightScheme, norm: float
) -> float:
    return float(error(weight, scales, scheme).abs().pow(norm).sum())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("norm", [0.7, 2.0])
def test_the_objective_falls_below_that_of_the_range(scheme: WeightScheme, norm: float) -> None:
    weight = heavy_tailed(48, 128)
    found = solved(
        weight,
        scheme,
        torch.bfloat16,
        norm=norm,
        iterations=10,
        factors=(1.0, 0.8),
    )
    plain = ranged(weight, scheme, torch.bfloat16)
    # With 256 levels there is next to nothing to gain.
    limit = 0.97 if scheme.bits == 4 else 1.0
    ours = objective(weight, found, scheme, norm)
    assert ours <= limit * objective(weight, plain, scheme, norm)
    assert torch.equal(found.zero_points, found.zero_points.round())
    assert (found.scales > 0).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_small_weights_are_solved_for_in_float16(symmetric: bool) -> None:
    """Their scales are below float16's smallest normal number."""
    scheme = WeightScheme(bits=4, group_size=-1, symmetric=symmetric)
    weight = heavy_tailed(48, 128) / 1024
    how = {"norm": 2.0, "iterations": 10, "factors": (1.0,)}
    found, wide = (
        solved(weight, scheme, stored, **how) for stored in (torch.float16, torch.float32)
    )
    assert found.scales.max() < torch.finfo(torch.float16).tiny
    values = round_to_nearest(weight, found, scheme) + found.zero_points
    others = round_to_nearest(weight, wide, scheme) + wide.zero_points
    assert (values == others).double().mean() > 0.98


@pytest.mark.parametrize("symmetric", [True, False])
def test_it_is_near_what_an_exhaustive_search_finds(symmetric: bool) -> None:
    scheme = WeightScheme(bits=4, group_size=-1, symmetric=symmetric)
    for seed in range(5):
        weight = heavy_tailed(6, 32)[seed : seed + 1]
        found = solved(
            weight,
            scheme,
            torch.bfloat16,
            norm=0.7,
            iterations=20,
            factors=(1.0, 0.9, 0.8, 0.7, 0.6, 0.5),
        )
        width = float(weight.max() - weight.min())
        zeros = [8.0] if symmetric else [float(zero) for zero in range(16)]
        best = min(
            objective(
                weight,
                GroupScales(torch.tensor([[scale]]).bfloat16().float(), torch.tensor([[zero]])),
                scheme,
                0.7,
            )
            for scale, zero in itertools.product(
                (width / 15 * (0.2 + 0.02 * step) for step in range(90)), zeros
            )
        )
        assert objective(weight, found, scheme, 0.7) < 1.25 * best


def test_outliers_are_forgiven() -> None:
    weight = torch.linspace(-1, 1, 64).repeat(4, 1) * 0.02
    weight[:, 5] = 0.4
    section = QuantizationSection(
        method="hqq",
        weights=WeightScheme(bits=4, group_size=64, symmetric=False),
        options={"norm": 0.7, "importance": "none"},
    )
    ours = HQQQuantizer(section).quantize({"x": weight}, InputStatistics(), torch.bfloat16)
    rounding = section.model_copy(update={"options": {}})
    plain = MinMaxQuantizer(rounding).quantize({"x": weight}, InputStatistics(), torch.bfloat16)
    medians = [
        float((made.linears["x"].dequantize() - weight).abs().median()) for made in (ours, plain)
    ]
    assert medians[0] < 0.5 * medians[1]


@pytest.mark.parametrize("scheme", SCHEMES[:2], ids=str)
def test_important_channels_keep_smaller_errors(scheme: WeightScheme) -> None:
    weight = heavy_tailed(48, 128)
    diagonal = torch.ones(128)
    diagonal[::8] = 400.0
    section = QuantizationSection(method="hqq", weights=scheme)
    inputs = InputStatistics(torch.diag(diagonal))
    made = HQQQuantizer(section).quantize({"x": weight}, inputs, torch.bfloat16)
    unweighted = section.model_copy(update={"options": {"importance": "none"}})
    plain = HQQQuantizer(unweighted).quantize({"x": weight}, InputStatistics(), torch.bfloat16)
    costs, errors = zip(
        *(
            (float((squares * diagonal).sum()), float(squares.sum()))
            for squares in (
                (group.linears["x"].dequantize() - weight).square() for group in (made, plain)
            )
        ),
        strict=True,
    )
    assert costs[0] < 0.8 * costs[1]
    assert errors[0] > errors[1]


def test_text_is_read_only_where_errors_are_weighted() -> None:
    section = QuantizationSection(method="hqq", weights=SCHEMES[0])
    assert needs_hidden_states(section)
    unweighted = section.model_copy(update={"options": {"importance": "none"}})
    assert not needs_hidden_states(unweighted)


def test_a_constant_group_stays_finite() -> None:
    section = QuantizationSection(method="hqq", weights=WeightScheme(bits=4, group_size=32))
    weight = torch.zeros(4, 64)
    weight[1] = 0.25
    made = HQQQuantizer(section).quantize({"x": weight}, InputStatistics(), torch.bfloat16)
    restored = made.linears["x"].dequantize()
    assert restored.isfinite().all()
    torch.testing.assert_close(restored, weight, atol=0.02, rtol=0)
