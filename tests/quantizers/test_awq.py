import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rounding import nearest, ranged
from torch import Tensor
from walking import forward, hidden_states, opened, quantized

from quantlib.errors import QuantizationError
from quantlib.models.folding import Fold
from quantlib.models.streamed import StreamedModel
from quantlib.numbers.grid import range_factors
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import AWQQuantizer, InputStatistics, MinMaxQuantizer, QuantizedInput
from quantlib.schemes import WeightScheme

pytestmark = pytest.mark.usefixtures("float32_products")
SALIENT = [3, 17, 40]


@pytest.fixture(scope="module")
def model(make_model: Any, tmp_path_factory: pytest.TempPathFactory) -> StreamedModel:
    """Four query heads of which two in a row share a key and value head."""
    folder = tmp_path_factory.mktemp("awq") / "grouped"
    grouped = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    return opened(make_model(folder, dtype="float32", **grouped))


def section(symmetric: bool, **options: Any) -> QuantizationSection:
    weights = WeightScheme(bits=4, group_size=32, symmetric=symmetric)
    return QuantizationSection(method="awq", weights=weights, options=options)


def fold_of(
    model: StreamedModel, shared: int, stored: torch.dtype = torch.float32, columns: int = 64
) -> Fold:
    block = model.block(0)
    producer = block.inputs[shared].producer
    assert producer is not None
    block.stored = dict.fromkeys(block.stored, stored)
    return Fold.of(block, producer, columns)


def salient_case() -> tuple[Tensor, Tensor]:
    """A weight ``[96, 64]`` and tokens ``[512, 64]`` of which few channels are large."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(512, 64, generator=generator)
    tokens[:, SALIENT] *= 12
    return torch.randn(96, 64, generator=generator), tokens


def output_error(quantized: QuantizedInput, weight: Tensor, tokens: Tensor) -> float:
    scales = torch.ones(64) if quantized.input_scales is None else quantized.input_scales
    output = (tokens / scales) @ quantized.linears["x"].dequantize().t()
    exact = tokens @ weight.t()
    return float((output - exact).square().sum() / exact.square().sum())


@pytest.mark.parametrize("symmetric", [True, False])
def test_salient_channels_are_protected(model: StreamedModel, symmetric: bool) -> None:
    weight, tokens = salient_case()
    inputs = InputStatistics(tokens.t() @ tokens / len(tokens), fold_of(model, 0, torch.bfloat16))

    def error(quantizer: Any) -> float:
        return output_error(
            quantizer.quantize({"x": weight}, inputs, torch.bfloat16), weight, tokens
        )

    awq = error(AWQQuantizer(section(symmetric)))
    assert awq < 0.9 * error(AWQQuantizer(section(symmetric, scaling="none")))
    assert awq < 0.9 * error(AWQQuantizer(section(symmetric, clipping=False)))
    assert awq < 0.4 * error(MinMaxQuantizer(section(symmetric)))
    scales = AWQQuantizer(section(symmetric)).quantize({"x": weight}, inputs, torch.bfloat16)
    assert scales.input_scales is not None
    others = [channel for channel in range(64) if channel not in SALIENT]
    assert scales.input_scales[SALIENT].min() > scales.input_scales[others].max()


def grid(
    weight: Tensor, tokens: Tensor, quantizer: Any, tie: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Scales ``[candidates, groups, 32]`` and their errors ``[candidates, groups]``."""
    scheme = quantizer.section.weights
    shape = (weight.shape[1] // 32, 32)
    by_group = weight.abs().unflatten(1, shape)
    weights = (by_group / by_group.amax(-1, keepdim=True)).mean(0).flatten()
    activations = tokens.square().mean(0).sqrt()
    candidates = []
    errors = []
    for a, b in itertools.product(
        (0.0, 0.15, 0.3, 0.45, 0.6),
        (0.0, 0.5, 1.0) if quantizer.options.scaling == "duo" else (0.0,),
    ):
        scales = tie(activations**a / weights**b)
        tried = []
        for factor in range_factors(scheme)[::2]:
            ranges = ranged(weight * scales, scheme, torch.float32, factor)
            rounded = nearest(weight * scales, ranges, scheme, torch.float32).dequantize()
            change = (rounded / scales - weight).unflatten(1, shape)
            outputs = torch.einsum("tgc,rgc->trg", tokens.unflatten(1, shape), change)
            tried.append(outputs.square().sum(0))
        candidates.append(scales.view(shape))
        errors.append(torch.stack(tried).amin(0).sum(0))
    return torch.stack(candidates), torch.stack(errors)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scaling", ["duo", "activations"])
def test_scales_are_the_best_of_the_grid(
    model: StreamedModel, scaling: str, symmetric: bool
) -> None:
    weight, tokens = salient_case()
    quantizer = AWQQuantizer(section(symmetric, scaling=scaling))
    inputs = InputStatistics(tokens.t() @ tokens / len(tokens), fold_of(model, 0))
    found = quantizer.quantize({"x": weight}, inputs, torch.float32).input_scales
    assert found is not None
    candidates, errors = grid(weight, tokens, quantizer, lambda scales: scales)
    for group, best in enumerate(errors.argmin(0).tolist()):
        ratio = found.view(2, 32)[group] / candidates[best, group]
        torch.testing.assert_close(ratio, ratio[:1].expand(32), rtol=1e-3, atol=0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_heads_that_share_values_in_other_groups_take_the_best_for_all(
    make_model: Any, tmp_path: Path, symmetric: bool
) -> None:
    """As in models of real size, where each head has groups of its own."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    model = opened(make_model(tmp_path / "wide", dtype="float32", **heads))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 128, generator=generator)
    tokens = torch.randn(512, 128, generator=generator)
    tokens[:, [5, 70]] *= 12  # in heads 0 and 2; the others that share their values have none
    quantizer = AWQQuantizer(section(symmetric))
    inputs = InputStatistics(tokens.t() @ tokens / len(tokens), fold_of(model, 1, columns=128))
    found = quantizer.quantize({"x": weight}, inputs, torch.float32).input_scales
    assert found is not None

    def tie(scales: Tensor) -> Tensor:
        means = scales.unflatten(0, (2, 2, 32)).log().mean(1, keepdim=True).exp()
        return means.expand(2, 2, 32).flatten()

    candidates, errors = grid(weight, tokens, quantizer, tie)
    assert len(set(errors.argmin(0).tolist())) > 1
    ratio = found / candidates[errors.sum(1).argmin()].flatten()
    torch.testing.assert_close(ratio, ratio[:1].expand(128), rtol=1e-3, atol=0)
    for first, second in found.unflatten(0, (2, 2, 32)):
        assert torch.equal(first, second)


def test_an_input_that_has_to_stay_is_not_scaled() -> None:
    weight, tokens = salient_case()
    inputs = InputStatistics(tokens.t() @ tokens / len(tokens))
    awq = AWQQuantizer(section(True)).quantize({"x": weight}, inputs, torch.bfloat16)
    assert awq.input_scales is None
    plain = MinMaxQuantizer(section(True)).quantize({"x": weight}, inputs, torch.bfloat16)
    assert output_error(awq, weight, tokens) < 0.8 * output_error(plain, weight, tokens)


def test_heads_that_share_values_get_the_same_scales(model: StreamedModel) -> None:
    weight, tokens = salient_case()
    inputs = InputStatistics(tokens.t() @ tokens / len(tokens), fold_of(model, 1))
    quantized = AWQQuantizer(section(True)).quantize({"x": weight}, inputs, torch.float32)
    assert quantized.input_scales is not None
    heads = quantized.input_scales.unflatten(0, (2, 2, 16))
    torch.testing.assert_close(heads[:, 0], heads[:, 1])
    assert heads.std() > 0.05


def test_dead_channels_and_dead_inputs_stay_finite(model: StreamedModel) -> None:
    weight, tokens = salient_case()
    weight[:, :32] = 0
    for dead in (slice(0, 8), slice(None)):
        tokens[:, dead] = 0
        inputs = InputStatistics(
            tokens.t() @ tokens / len(tokens), fold_of(model, 0, torch.float16)
        )
        quantized = AWQQuantizer(section(False)).quantize({"x": weight}, inputs, torch.float16)
        assert quantized.input_scales is not None
        assert quantized.input_scales.isfinite().all()
        assert (quantized.input_scales > 1e-3).all()
        assert quantized.linears["x"].dequantize().isfinite().all()


def test_activations_that_overflow_name_the_linears() -> None:
    hessian = torch.eye(64)
    hessian[3, 3] = torch.inf
    weights = {"q": torch.randn(8, 64), "k": torch.randn(8, 64)}
    with pytest.raises(QuantizationError, match=r"q and k: .* not finite"):
        AWQQuantizer(section(True)).quantize(weights, InputStatistics(hessian), torch.bfloat16)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_block_is_closer_than_by_rounding_and_folds_its_scales(
    model: StreamedModel, symmetric: bool
) -> None:
    hidden = hidden_states() / 2
    # Two channels of the residual stream dominate, as in trained models.
    hidden[..., [5, 50]] *= 10
    reference = forward(model, hidden)
    result, output = quantized(model, hidden, AWQQuantizer(section(symmetric)))
    again = forward(model, hidden, written=result)
    torch.testing.assert_close(again, output, rtol=1e-3, atol=1e-3)
    assert set(result.changed) == {"input_layernorm.weight", "post_attention_layernorm.weight"}

    _, rounded = quantized(model, hidden, MinMaxQuantizer(section(symmetric)))
    assert (output - reference).norm() < 0.8 * (rounded - reference).norm()
