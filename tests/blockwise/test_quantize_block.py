from pathlib import Path

import pytest
import torch
from torch import Tensor
from walking import forward, hidden_states, inputs_of, opened, quantized, weights_of

from quantlib.errors import QuantizationError
from quantlib.models.streamed import Block, StreamedModel
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import AWQQuantizer, GPTQQuantizer, MinMaxQuantizer
from quantlib.schemes import SCHEMES, WeightScheme

pytestmark = pytest.mark.usefixtures("float32_products")
SECTION = QuantizationSection(weights=WeightScheme(bits=4, group_size=32))
HIDDEN = hidden_states(24)  # three batches


@pytest.fixture
def model(tiny_llama: Path) -> StreamedModel:
    return opened(tiny_llama)


def test_outputs_are_those_of_the_quantized_block(model: StreamedModel) -> None:
    result, output = quantized(model, HIDDEN, GPTQQuantizer(SECTION))
    again = forward(model, HIDDEN, written=result)
    torch.testing.assert_close(output, again, rtol=1e-5, atol=1e-5)


def test_reported_errors_are_measured_on_the_quantized_inputs(model: StreamedModel) -> None:
    result, _ = quantized(model, HIDDEN, GPTQQuantizer(SECTION))
    seen = inputs_of(model, HIDDEN, written=result)
    by_linear = {
        linear: seen[shared.name] for shared in model.adapter.inputs(1) for linear in shared.linears
    }
    original = weights_of(model)
    for error in result.errors:
        x, weight = by_linear[error.linear], original[error.linear]
        change = result.linears[error.linear].dequantize() - weight
        expected = (x @ change.t()).square().sum() / (x @ weight.t()).square().sum()
        assert error.relative_error == pytest.approx(float(expected), rel=1e-3)
        assert error.damping == 0.1
    assert [error.linear for error in result.errors] == list(result.linears)


def test_gptq_is_better_than_rounding(model: StreamedModel) -> None:
    reference = forward(model, HIDDEN)
    gptq, output = quantized(model, HIDDEN, GPTQQuantizer(SECTION))
    plain = SECTION.model_copy(update={"method": "minmax"})
    _, rounded = quantized(model, HIDDEN, MinMaxQuantizer(plain))
    assert len(gptq.linears) == 7
    changed = [(found - reference).square().sum() for found in (output, rounded)]
    assert changed[0] < 0.8 * changed[1]


def test_exact_linears_are_left_alone(model: StreamedModel) -> None:
    exact = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
    blocks: list[Block] = []
    result, _ = quantized(model, HIDDEN, GPTQQuantizer(SECTION), exact, change=blocks.append)
    assert not exact & set(result.linears)
    assert len(result.linears) == 4


def test_scales_are_not_folded_into_a_linear_that_stays_exact(model: StreamedModel) -> None:
    """What is exact is bit for bit what it was: v, which gives o its input, and up for down."""
    section = SECTION.model_copy(update={"method": "awq"})
    exact = {"self_attn.v_proj", "self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"}
    exact.add("mlp.gate_proj")
    result, output = quantized(model, HIDDEN, AWQQuantizer(section), exact)
    assert not result.changed
    assert set(result.linears) == {"self_attn.o_proj", "mlp.down_proj"}
    again = forward(model, HIDDEN, written=result)
    torch.testing.assert_close(output, again, rtol=1e-4, atol=1e-4)


def test_scales_are_not_folded_before_a_linear_that_stays_exact(model: StreamedModel) -> None:
    """It would read the scaled input with weights that know nothing of it."""
    section = SECTION.model_copy(update={"method": "awq"})
    result, output = quantized(model, HIDDEN, AWQQuantizer(section), {"self_attn.q_proj"})
    assert set(result.changed) == {"post_attention_layernorm.weight"}
    again = forward(model, HIDDEN, written=result)
    torch.testing.assert_close(output, again, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", ["NVFP4A16", "MXFP4A16"])
def test_scales_are_not_folded_into_rows_whose_own_cannot_be_any_number(
    model: StreamedModel, scheme: str
) -> None:
    """A scale in FP8, or a power of two, would be rounded once more: v before o, up before down."""
    weights = WeightScheme.model_validate(SCHEMES[scheme]["weights"])
    section = SECTION.model_copy(update={"method": "awq", "weights": weights})
    result, output = quantized(model, HIDDEN, AWQQuantizer(section))
    assert set(result.changed) == {"input_layernorm.weight", "post_attention_layernorm.weight"}
    again = forward(model, HIDDEN, written=result)
    torch.testing.assert_close(output, again, rtol=1e-3, atol=1e-3)


def test_static_activations_get_the_largest_input_of_all_tokens(model: StreamedModel) -> None:
    def silence(block: Block) -> None:
        block.tensors["post_attention_layernorm.weight"] = torch.zeros(64)

    section = SECTION.model_copy(update={"method": "minmax", "activations": "int8-static"})
    result, _ = quantized(model, HIDDEN, MinMaxQuantizer(section), change=silence)
    seen = inputs_of(model, HIDDEN, written=result, change=silence)
    for shared in model.adapter.inputs(1):
        for name in shared.linears:
            linear = result.linears[name]
            assert linear.input_scale is not None
            assert linear.input_scale.dtype is torch.float32
            # An input of zeros still has a scale that it can be divided by.
            expected = max(float(seen[shared.name].abs().max()), 1e-12) / 127
            assert linear.input_scale.tolist() == pytest.approx([expected], rel=1e-5)
    assert seen["mlp.down_proj"].abs().max() == 0 < seen["self_attn.o_proj"].abs().max()


def test_activations_that_overflow_name_the_linears(model: StreamedModel) -> None:
    def overflow(block: Block) -> None:
        weight: Tensor = block.tensors["input_layernorm.weight"].clone()
        weight[3] = torch.inf
        block.tensors["input_layernorm.weight"] = weight

    with pytest.raises(QuantizationError, match=r"block 1: self_attn.q_proj and .* not finite"):
        quantized(model, HIDDEN, GPTQQuantizer(SECTION), change=overflow)
