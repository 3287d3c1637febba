import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams
from rounding import nearest, of_first, ranged, searched

from quantlib.numbers.scaling import smallest_scale
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import InputStatistics, quantizer_registry
from quantlib.quantizers.hqq_solver import half_quadratic_scales
from quantlib.schemes import SCHEMES as SCHEMES_BY_NAME
from quantlib.schemes import WeightScheme

SCHEMES = [
    WeightScheme(bits=bits, group_size=group_size, symmetric=symmetric)
    for bits in (4, 8)
    for group_size in (-1, 32)
    for symmetric in (True, False)
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_ranges_equal_those_of_compressed_tensors(scheme: WeightScheme) -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)) + 0.3
    ours = ranged(weight, scheme, torch.float32)
    groups = weight.unflatten(1, (ours.scales.shape[1], -1))
    arguments = QuantizationArgs(
        num_bits=scheme.bits,
        symmetric=scheme.symmetric,
        strategy="channel" if scheme.group_size == -1 else "group",
        group_size=None if scheme.group_size == -1 else scheme.group_size,
    )
    scales, zeros = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
    torch.testing.assert_close(ours.scales, scales, rtol=1e-6, atol=0)
    # Their codes are signed.
    shift = 1 << (scheme.bits - 1)
    assert torch.equal(ours.zero_points - shift, zeros.float())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rounding_error_is_at_most_half_a_step(scheme: WeightScheme) -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    scales = ranged(weight, scheme, torch.float32)
    linear = nearest(weight, scales, scheme, torch.float32)
    step = scales.scales.repeat_interleave(64 // scales.scales.shape[1], 1)
    # The largest positive weight of a symmetric group, and the zero point, are rounded once more.
    assert ((linear.dequantize() - weight).abs() <= step * 1.01).all()
    assert ((linear.dequantize() - weight).abs() <= step * 0.501).double().mean() > 0.95


@pytest.mark.parametrize("symmetric", [True, False])
def test_search_finds_the_best_of_the_grid(symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(700, 64, generator=generator)
    importance = torch.rand(64, generator=generator) ** 4
    scheme = WeightScheme(bits=4, group_size=32, symmetric=symmetric)
    shrinks = (1.0, 0.9, 0.8, 0.7, 0.6)

    def errors(scales) -> torch.Tensor:
        restored = nearest(weight, scales, scheme, torch.bfloat16).dequantize()
        return ((restored - weight).square() * importance).unflatten(1, (2, 32)).sum(-1)

    best, _ = searched(weight, importance, scheme, torch.bfloat16, shrinks)
    found = errors(best)
    grid = [errors(ranged(weight, scheme, torch.bfloat16, shrink)) for shrink in shrinks]
    torch.testing.assert_close(found, torch.stack(grid).amin(0), rtol=1e-4, atol=1e-7)
    assert (found < grid[0]).double().mean() > 0.4


@pytest.mark.parametrize("symmetric", [True, False])
def test_search_finds_the_best_by_blocks_of_the_hessian(symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(700, 64, generator=generator)
    tokens = torch.randn(40, 2, 32, generator=generator)
    blocks = torch.einsum("tgc,tgd->gcd", tokens, tokens)
    scheme = WeightScheme(bits=4, group_size=32, symmetric=symmetric)
    shrinks = (1.0, 0.9, 0.8, 0.7, 0.6)

    def errors(scales) -> torch.Tensor:
        restored = nearest(weight, scales, scheme, torch.bfloat16).dequantize()
        change = (restored - weight).unflatten(1, (2, 32))
        return torch.einsum("tgc,rgc->trg", tokens, change).square().sum(0)

    found, least = searched(weight, blocks, scheme, torch.bfloat16, shrinks)
    grid = [errors(ranged(weight, scheme, torch.bfloat16, shrink)) for shrink in shrinks]
    torch.testing.assert_close(least, torch.stack(grid).amin(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(least, errors(found), rtol=1e-3, atol=1e-3)
    by_diagonal, _ = searched(
        weight, blocks.diagonal(dim1=1, dim2=2).flatten(), scheme, torch.bfloat16, shrinks
    )
    assert least.sum() < 0.97 * errors(by_diagonal).sum()


def test_scales_are_exact_in_the_dtype_that_stores_them() -> None:
    weight = torch.randn(8, 64)
    scheme = WeightScheme(bits=4, group_size=32)
    for stored in (torch.bfloat16, torch.float16):
        scales = ranged(weight, scheme, stored).scales
        assert torch.equal(scales.to(stored).float(), scales)


@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_of_zeros_and_of_tiny_weights_stay_finite(symmetric: bool) -> None:
    weight = torch.zeros(2, 64)
    weight[1] = 1e-12
    scheme = WeightScheme(bits=4, group_size=32, symmetric=symmetric)
    for stored in (torch.float16, torch.bfloat16):
        scales = ranged(weight, scheme, stored)
        restored = nearest(weight, scales, scheme, stored).dequantize()
        assert torch.isfinite(restored).all()
        assert (restored - weight).abs().max() < 1e-6


def relative_error(restored: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The norm of each row's change over that of the row."""
    return (restored - weight).norm(dim=1) / weight.norm(dim=1)


@pytest.mark.parametrize("method", ["range", "search", "hqq", "float8"])
def test_rows_of_small_weights_keep_their_codes_in_float16(method: str) -> None:
    """Below absmax 7.8e-3, scales of 8 bits are smaller than float16's smallest normal number."""
    generator = torch.Generator().manual_seed(0)
    deviations = torch.tensor([2e-2, 2e-3, 1e-3, 5e-4, 2e-4])
    weight = (torch.randn(5, 512, generator=generator) * deviations[:, None]).half().float()
    kind = "float" if method == "float8" else "int"
    scheme = WeightScheme(type=kind, bits=8, group_size=-1)
    arguments = QuantizationArgs(num_bits=8, type=kind, symmetric=True, strategy="channel")
    low, high = weight.half().amin(1, keepdim=True), weight.half().amax(1, keepdim=True)
    expected, _ = calculate_qparams(low, high, arguments)
    assert 0 < expected.min() < 6e-6

    ones = torch.ones(512)
    if method in ("range", "float8"):
        scales = ranged(weight, scheme, torch.float16)
    elif method == "search":
        scales, _ = searched(weight, ones, scheme, torch.float16, (1.0, 0.95))
    else:
        how = {"norm": 2.0, "iterations": 10, "factors": (1.0, 0.95)}
        found = half_quadratic_scales(weight[None], [5], ones[None], scheme, torch.float16, **how)
        scales = of_first(found)
    linear = nearest(weight, scales, scheme, torch.float16)
    codes = weight / expected.float()
    if method == "float8":
        codes = codes.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    else:
        codes = codes.round().clamp(-128, 127)
    if method in ("range", "float8"):
        # To a step of the subnormal numbers, or of a mantissa.
        torch.testing.assert_close(linear.scales, expected, rtol=1e-3, atol=6e-8)
    theirs = relative_error(codes * expected.float(), weight)
    assert (relative_error(linear.dequantize(), weight) < 1.05 * theirs).all()


def test_the_smallest_scale_is_stored_and_can_be_divided_by() -> None:
    for stored, expected in ((torch.float16, 2.0**-24), (torch.bfloat16, 2.0**-126)):
        smallest = smallest_scale(stored)
        assert torch.tensor(smallest, dtype=stored).item() == smallest == expected
        assert torch.tensor(smallest).reciprocal().isfinite()
    assert smallest_scale(torch.float32) == 2.0**-126


@pytest.mark.parametrize("method", ["minmax", "gptq", "hqq", "awq"])
def test_linears_of_an_input_share_the_scale_of_a_tensor(method: str) -> None:
    """Else vLLM, which fuses them, would round all but one a second time."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: size * torch.randn(rows, 64, generator=generator)
        for name, rows, size in (("q", 40, 1.0), ("k", 24, 0.1))
    }
    inputs = InputStatistics(torch.eye(64))
    scheme = WeightScheme(**SCHEMES_BY_NAME["FP8"]["weights"])
    section = QuantizationSection(method=method, weights=scheme)
    quantizer = quantizer_registry.get_quantizer(method)(section)
    linears = quantizer.quantize(weights, inputs, torch.bfloat16).linears
    (scale,) = {float(linear.scales) for linear in linears.values()}
    largest = max(float(weight.abs().max()) for weight in weights.values())
    if method != "hqq":
        assert scale == torch.tensor(largest / 448).bfloat16().item()
    for name, weight in weights.items():
        nearest_codes = (weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        assert torch.equal(linears[name].codes.float(), nearest_codes.float())
        assert torch.equal(linears[name].dequantize(), nearest_codes.float() * scale)
