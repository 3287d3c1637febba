from pathlib import Path

import pytest
import torch
from walking import opened

from quantlib.blockwise.statistics import ChannelObserver, HessianAccumulator, TokenSample
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import GPTQQuantizer, InputStatistics
from quantlib.schemes import WeightScheme


@pytest.mark.parametrize("channels", [64, 384, 1000])
def test_hessian_is_the_mean_outer_product(channels: int) -> None:
    x = torch.randn(3, 50, channels, generator=torch.Generator().manual_seed(0))
    accumulator = HessianAccumulator(channels, torch.device("cpu"))
    accumulator.add(x[:1])
    accumulator.add(x[1:])
    tokens = x.flatten(0, 1).double()
    expected = (tokens.t() @ tokens / 150).float()
    assert accumulator.tokens == 150
    torch.testing.assert_close(accumulator.hessian(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(accumulator.hessian(), accumulator.hessian().t())


def test_hessian_of_short_tokens_is_rounded_little() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 100, 300, generator=generator) + torch.randn(300, generator=generator)
    accumulator = HessianAccumulator(300, torch.device("cpu"))
    for batch in x.bfloat16():
        accumulator.add(batch)
    tokens = x.bfloat16().double().flatten(0, 1)
    expected = tokens.t() @ tokens / 1600
    error = (accumulator.hessian() - expected).norm() / expected.norm()
    assert 1e-5 < error < 1e-3  # in float32 it would be 1e-7


@pytest.mark.parametrize("scale", [20.0, 3000.0])
def test_hessian_of_tokens_in_float16_does_not_overflow(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 512, 200, generator=generator) * scale).half()
    accumulator = HessianAccumulator(200, torch.device("cpu"))
    accumulator.add(x)
    tokens = x.double().flatten(0, 1)
    expected = (tokens.t() @ tokens / 1024).float()
    torch.testing.assert_close(accumulator.hessian(), expected, rtol=1e-4, atol=1e-4 * scale**2)


def test_gptq_loses_nothing_by_hessians_of_short_tokens() -> None:
    """Small eigenvalues suffer most from rounded products, and it is they that GPTQ inverts."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(256, 256, generator=generator) / 16 * torch.logspace(-2, 0.5, 256)
    x = (torch.randn(32, 64, 256, generator=generator) @ mixing).bfloat16()
    weight = torch.randn(64, 256, generator=generator) * 0.02
    tokens = x.double().flatten(0, 1)
    exact = tokens.t() @ tokens / len(tokens)
    accumulator = HessianAccumulator(256, torch.device("cpu"))
    for batch in x:
        accumulator.add(batch)

    def error(hessian: torch.Tensor) -> float:
        section = QuantizationSection(weights=WeightScheme(bits=4, group_size=64))
        inputs = InputStatistics(hessian)
        quantized = GPTQQuantizer(section).quantize({"x": weight}, inputs, torch.bfloat16)
        change = (quantized.linears["x"].dequantize() - weight).double()
        return float((change @ exact * change).sum())

    assert error(accumulator.hessian()) == pytest.approx(error(exact.float()), rel=0.02)


def test_observer_keeps_the_extremes_of_all_batches(tiny_llama: Path) -> None:
    block = opened(tiny_llama).block(1)
    observer = ChannelObserver(block)
    for shared in block.inputs:
        width = block.weight(shared.linears[0]).shape[1]
        observer(shared, [torch.ones(1, 2, width), torch.full((1, 2, width), -3.0)])
    tensors = observer.tensors()
    assert len(tensors) == 8
    assert (tensors["mlp.gate_proj.input_absmax"] == 3).all()
    both = torch.cat([block.weight("mlp.gate_proj"), block.weight("mlp.up_proj")])
    assert torch.equal(tensors["mlp.gate_proj.weight_absmax"], both.abs().amax(0).float())


def test_observer_takes_batches_without_tokens(tiny_llama: Path) -> None:
    block = opened(tiny_llama).block(1)
    observer = ChannelObserver(block)
    for shared in block.inputs:
        empty = torch.ones(0, block.weight(shared.linears[0]).shape[1])
        more = [torch.full((2, empty.shape[1]), -2.0), empty]
        observer(shared, [empty, *(more if shared.name == "mlp.gate_proj" else [])])
    tensors = observer.tensors()
    assert (tensors["mlp.gate_proj.input_absmax"] == 2).all()
    assert (tensors["self_attn.q_proj.input_absmax"] == 0).all()


def test_a_sample_is_spread_over_all_tokens() -> None:
    tokens = torch.arange(4096.0)[:, None] * torch.ones(3)
    samples = [TokenSample(4096, 100), TokenSample(4096, 100)]
    left: dict[int, list[torch.Tensor]] = {64: [], 512: []}
    for sample, batch in zip(samples, (64, 512), strict=True):
        for part in tokens.unflatten(0, (-1, 64)).split(batch // 64):
            left[batch].append(sample.add(part))
    first, other = (sample.tokens() for sample in samples)
    assert torch.equal(first, other)
    positions = first[:, 0]
    assert first.shape == (100, 3)
    assert len(positions.unique()) == 100
    for rest in left.values():
        both = torch.cat([*rest, first])
        assert torch.equal(both[:, 0].sort().values, tokens[:, 0])
    # Every eighth of the text is there, and no one place within a window of 64.
    assert torch.histc(positions, 8, 0, 4096).min() > 4
    assert len((positions % 64).unique()) > 40


def test_a_sample_of_few_tokens_is_all_of_them() -> None:
    sample = TokenSample(10, 100)
    tokens = torch.randn(2, 5, 4)
    assert sample.add(tokens).shape == (0, 4)
    assert torch.equal(sample.tokens(), tokens.flatten(0, 1))
