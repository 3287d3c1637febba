from pathlib import Path

import pytest
import torch

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.errors import QuantizationError
from quantlib.models import model_registry
from quantlib.quantizers import GPTQQuantizer, MinMaxQuantizer
from quantlib.quantizers.block import quantize_block
from quantlib.recipe import QuantizationSection, WeightScheme

pytestmark = pytest.mark.usefixtures("float32_products")
SECTION = QuantizationSection(weights=WeightScheme(bits=4, group_size=32))


@pytest.fixture
def model(tiny_llama: Path):
    checkpoint = Checkpoint.open(FolderSource(tiny_llama))
    adapter = model_registry.adapter_for(checkpoint.config)
    return adapter.load_model(checkpoint, torch.device("cpu"))


@pytest.fixture
def batches(model) -> list[torch.Tensor]:
    tokens = torch.randint(0, 512, (8, 64), generator=torch.Generator().manual_seed(0))
    return list(model.embed(tokens).float().split(4))


def test_outputs_are_those_of_the_quantized_block(model, batches: list[torch.Tensor]) -> None:
    inputs = torch.cat(batches)
    block = model.block(0)
    result = quantize_block(block, batches, GPTQQuantizer(SECTION), (), torch.bfloat16)
    fresh = model.block(0)
    for name, linear in result.linears.items():
        fresh.tensors[f"{name}.weight"] = linear.dequantize()
    torch.testing.assert_close(torch.cat(batches), fresh.forward(inputs), rtol=1e-5, atol=1e-5)


def test_reported_errors_are_measured_on_the_quantized_inputs(
    model, batches: list[torch.Tensor]
) -> None:
    inputs = torch.cat(batches)
    block = model.block(0)
    result = quantize_block(block, batches, GPTQQuantizer(SECTION), (), torch.bfloat16)
    seen = {}
    block.forward(inputs, lambda group, x: seen.update(dict.fromkeys(group.linears, x)))
    original = model.block(0)
    for error in result.errors:
        x = seen[error.linear].flatten(0, 1)
        weight = original.tensors[f"{error.linear}.weight"]
        change = result.linears[error.linear].dequantize() - weight
        expected = (x @ change.t()).square().sum() / (x @ weight.t()).square().sum()
        assert error.relative_error == pytest.approx(float(expected), rel=1e-3)
        assert error.damping == 0.1
    assert [error.linear for error in result.errors] == list(result.linears)


def test_gptq_is_better_than_rounding(model, batches: list[torch.Tensor]) -> None:
    inputs = [batch.clone() for batch in batches]
    reference = model.block(0).forward(torch.cat(batches))
    gptq = quantize_block(model.block(0), batches, GPTQQuantizer(SECTION), (), torch.bfloat16)
    plain = SECTION.model_copy(update={"method": "minmax"})
    quantize_block(model.block(0), inputs, MinMaxQuantizer(plain), (), torch.bfloat16)
    assert len(gptq.linears) == 7
    changed = [(torch.cat(outputs) - reference).square().sum() for outputs in (batches, inputs)]
    assert changed[0] < 0.8 * changed[1]


def test_exact_linears_are_left_alone(model, batches: list[torch.Tensor]) -> None:
    block = model.block(0)
    exact = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
    result = quantize_block(block, batches, GPTQQuantizer(SECTION), exact, torch.bfloat16)
    assert not exact & set(result.linears)
    original = model.block(0)
    for name in exact:
        assert torch.equal(block.tensors[f"{name}.weight"], original.tensors[f"{name}.weight"])


def test_static_activations_get_the_largest_input_of_all_tokens(
    model, batches: list[torch.Tensor]
) -> None:
    inputs = torch.cat(batches)
    block = model.block(0)
    block.tensors["post_attention_layernorm.weight"].zero_()
    result = quantize_block(
        block, batches, MinMaxQuantizer(SECTION), (), torch.bfloat16, static_activations=True
    )
    largest: dict[str, torch.Tensor] = {}
    block.forward(inputs, lambda g, x: largest.update(dict.fromkeys(g.linears, x.abs().max())))
    for name, linear in result.linears.items():
        assert linear.input_scale is not None
        assert linear.input_scale.dtype is torch.float32
        # An input of zeros still has a scale that it can be divided by.
        expected = max(float(largest[name]), 1e-12) / 127
        assert linear.input_scale.tolist() == pytest.approx([expected], rel=1e-5)
    assert largest["mlp.down_proj"] == 0 < largest["self_attn.o_proj"]


def test_activations_that_overflow_name_the_linears(model, batches: list[torch.Tensor]) -> None:
    block = model.block(0)
    block.tensors["input_layernorm.weight"][3] = torch.inf
    with pytest.raises(QuantizationError, match=r"block 0: self_attn.q_proj and .* not finite"):
        quantize_block(block, batches, GPTQQuantizer(SECTION), (), torch.bfloat16)
