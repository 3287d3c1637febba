"""GPTQ against a plain transcription of the paper's algorithm in float64."""

import pytest
import torch
from rounding import as_linear, ranged, searched
from torch import Tensor

from quantlib.numbers.grid import grid_of
from quantlib.quantizers.gptq_solver import (
    Factor,
    NotPositiveDefiniteError,
    factorize,
    round_columns,
)
from quantlib.quantizers.rounding import round_to_nearest
from quantlib.quantizers.scales import GroupScales
from quantlib.schemes import WeightScheme


def problem(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    x = torch.randn(4 * columns, columns, generator=generator) @ (mixing + torch.eye(columns))
    return weight, x.t() @ x / len(x)


def reference(
    weight: Tensor,
    hessian: Tensor,
    scales: Tensor,
    zeros: Tensor,
    bits: int,
    damping: float,
    order: Tensor,
) -> Tensor:
    """Algorithm 1 with B = 1: each error is spread at once, by the inverse that remains."""
    columns = weight.shape[1]
    group_size = columns // scales.shape[1]
    h = hessian.double() + damping * hessian.diagonal().double().mean() * torch.eye(columns)
    w = weight.double().clone()
    codes = torch.empty_like(w)
    remaining = order.tolist()
    while remaining:
        inverse = torch.linalg.inv(h[remaining][:, remaining])
        column = remaining[0]
        group = column // group_size
        scale, zero = scales[:, group].double(), zeros[:, group].double()
        codes[:, column] = (w[:, column] / scale).round().add(zero).clamp(0, 2**bits - 1)
        error = (w[:, column] - (codes[:, column] - zero) * scale) / inverse[0, 0]
        w[:, remaining] -= error[:, None] * inverse[0][None, :]
        remaining = remaining[1:]
    return codes


def rounded(weight: Tensor, factor: Factor, scales: GroupScales, scheme: WeightScheme) -> Tensor:
    """The values of the grid of one matrix."""
    grid = grid_of(scheme)
    (values,) = round_columns(
        weight[None], factor, scales.scales[None], scales.zero_points[None], grid
    )
    return values


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(
    "scheme",
    [
        WeightScheme(bits=4, group_size=32),
        WeightScheme(bits=4, group_size=32, symmetric=False),
        WeightScheme(bits=8, group_size=-1),
    ],
    ids=str,
)
def test_equals_the_paper(act_order: bool, scheme: WeightScheme) -> None:
    weight, hessian = problem(24, 160)
    scales = ranged(weight, scheme, torch.float32)
    # In float64, where no value comes to lie on the other side of a tie.
    factor = factorize([hessian.double()], 0.01, act_order)
    scales = GroupScales(scales.scales.double(), scales.zero_points.double())
    values = rounded(weight.double(), factor, scales, scheme)
    zeros = scales.zero_points.repeat_interleave(160 // scales.zero_points.shape[1], 1)
    (order,) = factor.order
    expected = reference(
        weight, hessian, scales.scales, scales.zero_points, scheme.bits, 0.01, order
    )
    assert torch.equal(values + zeros, expected)
    if act_order:
        diagonal = hessian.diagonal()[order]
        assert (diagonal[:-1] >= diagonal[1:]).all()


@pytest.mark.parametrize("columns", [1, 192, 193, 700])
def test_factor_is_that_of_the_inverse(columns: int) -> None:
    _, hessian = problem(1, columns)
    hessian = hessian.double()
    factor = factorize([hessian], 0.01, act_order=True)
    (order,), (upper,) = factor.order, factor.upper
    assert torch.equal(upper, upper.triu())
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    expected = torch.linalg.inv(damped)[order][:, order]
    torch.testing.assert_close(upper.t() @ upper, expected, rtol=1e-8, atol=1e-10)


def output_error(weight: Tensor, restored: Tensor, hessian: Tensor) -> float:
    change = restored - weight
    return float((change @ hessian * change).sum())


def test_each_refinement_lowers_the_output_error() -> None:
    weight, hessian = problem(64, 256)
    hessian = hessian * torch.linspace(0.2, 3, 256)[:, None] * torch.linspace(0.2, 3, 256)
    scheme = WeightScheme(bits=4, group_size=64)
    plain = ranged(weight, scheme, torch.bfloat16)
    shrinks = tuple(1 - 0.05 * i for i in range(12))
    found, _ = searched(weight, hessian.diagonal(), scheme, torch.bfloat16, shrinks)
    factor = factorize([hessian], 0.01, act_order=True)

    def error(scales, values) -> float:
        linear = as_linear(values, scales, scheme, torch.bfloat16)
        return output_error(weight, linear.dequantize(), hessian)

    nearest = error(plain, round_to_nearest(weight, plain, scheme))
    gptq = error(plain, rounded(weight, factor, plain, scheme))
    best = error(found, rounded(weight, factor, found, scheme))
    assert best < gptq < nearest


def test_a_massive_channel_that_is_off_by_more_than_the_mean_is_no_obstacle() -> None:
    """As in SmolLM2's block 11, of 1,024 tokens, by products that are rounded to bfloat16."""
    hessian = torch.eye(64)
    hessian[:2, :2] = torch.tensor([[1000.0, 1500.0], [1500.0, 1000.0]])
    assert torch.linalg.eigvalsh(hessian)[0] < -10 * hessian.diagonal().mean()
    factor = factorize([hessian], 0.1, act_order=True)
    assert factor.damping == [pytest.approx(100.0)]
    assert factor.attempts == [4]
    assert factor.upper.isfinite().all()


def test_damping_rises_until_it_succeeds_and_is_recorded() -> None:
    hessian = torch.eye(8)
    assert factorize([hessian], 0.01, act_order=False).attempts == [1]
    indefinite = torch.eye(8)
    indefinite[0, 1] = indefinite[1, 0] = 1.05
    factor = factorize([indefinite], 0.001, act_order=False)
    assert factor.damping == [pytest.approx(0.1)]
    assert factor.attempts == [3]


def test_a_hessian_that_is_not_finite_is_refused() -> None:
    hessian = torch.eye(8)
    hessian[2, 3] = torch.nan
    with pytest.raises(NotPositiveDefiniteError) as refused:
        factorize([torch.eye(8), torch.eye(8), hessian], 0.01, act_order=True)
    assert refused.value.matrix == 2
    hessian = torch.eye(8)
    hessian[0, 0] = torch.inf
    with pytest.raises(NotPositiveDefiniteError) as refused:
        factorize([torch.eye(8), hessian], 0.01, act_order=True)
    assert refused.value.matrix == 1


def test_channels_that_are_never_used_do_no_harm() -> None:
    weight, hessian = problem(8, 64)
    hessian[:, 5] = 0
    hessian[5] = 0
    scheme = WeightScheme(bits=4, group_size=32)
    scales = ranged(weight, scheme, torch.float32)
    factor = factorize([hessian], 0.01, act_order=True)
    values = rounded(weight, factor, scales, scheme)
    linear = as_linear(values, scales, scheme, torch.float32)
    change = (linear.dequantize() - weight)[:, 5].abs()
    assert (change <= scales.scales[:, 0] * 0.5001).all()
    assert factorize([torch.zeros(8, 8)], 0.01, act_order=True).attempts == [1]
