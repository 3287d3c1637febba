"""Folded scales leave a block's function as it was."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from walking import forward, hidden_states, opened, quantized

from quantlib.models.folding import Fold
from quantlib.models.layout import SharedInput
from quantlib.models.streamed import Block, StreamedModel
from quantlib.outlier_suppression import SmoothQuantSuppressor
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import InputStatistics, MinMaxQuantizer, QuantizedInput
from quantlib.schemes import WeightScheme

pytestmark = pytest.mark.usefixtures("float32_products")
SECTION = QuantizationSection(method="minmax", weights=WeightScheme(bits=8, group_size=32))
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
HIDDEN = hidden_states(2, 24)


@pytest.fixture(params=["llama", "qwen2", "gemma2", "gemma3_text", "phi3", "olmo2"])
def model(request: Any, make_model: Callable[..., Path], tmp_path: Path) -> StreamedModel:
    return opened(make_model(tmp_path / "m", request.param, dtype="float32", **GROUPED))


def fold_of(model: StreamedModel, block: Block, shared: SharedInput, stored: torch.dtype) -> Fold:
    assert shared.producer is not None
    _, columns = model.adapter.linear_shape(block.index, shared.linears[0])
    block.stored = dict.fromkeys(block.stored, stored)
    return Fold.of(block, shared.producer, columns)


class ScalingQuantizer(MinMaxQuantizer):
    """Divides every input that may be scaled by scales of its own."""

    def quantize(
        self, weights: Mapping[str, Tensor], inputs: InputStatistics, stored: torch.dtype
    ) -> QuantizedInput:
        if inputs.fold is None:
            return super().quantize(weights, inputs, stored)
        columns = next(iter(weights.values())).shape[1]
        wanted = torch.rand(columns, generator=torch.Generator().manual_seed(columns)) * 2 + 0.5
        scales = inputs.fold.effective(inputs.fold.tie(wanted))
        scaled = {name: weight * scales for name, weight in weights.items()}
        return QuantizedInput(super().quantize(scaled, inputs, stored).linears, scales)


@pytest.mark.parametrize("exact_attention", [False, True])
def test_a_quantizer_may_scale_every_input(model: StreamedModel, exact_attention: bool) -> None:
    inputs = model.adapter.inputs(1)
    exact = inputs[0].linears if exact_attention else ()
    reference = forward(model, HIDDEN)
    blocks: list[Block] = []
    result, output = quantized(
        model, HIDDEN, ScalingQuantizer(SECTION), exact, change=blocks.append
    )
    again = forward(model, HIDDEN, written=result)
    torch.testing.assert_close(again, output, rtol=1e-3, atol=1e-3)
    assert (again - reference).norm() / reference.norm() < 0.04
    attention, values, mlp, _ = (shared.producer for shared in inputs)
    changed = {attention, mlp} - {None} if not exact_attention else {mlp} - {None}
    names = {f"{producer.name}.weight" for producer in changed}
    # Scales are folded into a linear where it is quantized too; what is exact stays as it is.
    if values and not exact_attention:
        names |= {f"{values.name}.bias"} & blocks[0].stored.keys()
    assert set(result.changed) == names


@pytest.mark.parametrize("model", ["llama", "gemma2", "phi3"], indirect=True)
def test_smoothing_keeps_the_function(model: StreamedModel) -> None:
    generator = torch.Generator().manual_seed(1)
    changed: dict[str, Tensor] = {}

    def smooth(block: Block) -> None:
        before = {name: block.tensors[name].clone() for name in block.tensors}
        scales = {}
        for shared in block.inputs:
            fold = fold_of(model, block, shared, torch.float32)
            scales[shared.name] = fold.tie(
                torch.rand(len(fold.rows), generator=generator) * 4 + 0.5
            )
        assert len(scales) == 4
        suppressor = SmoothQuantSuppressor({})
        changed.update(suppressor.apply(block, block.inputs, scales))
        for name, tensor in changed.items():
            assert torch.equal(block.tensors[name], tensor)
            assert not torch.allclose(tensor, before[name])

    found, expected = forward(model, HIDDEN, change=smooth), forward(model, HIDDEN)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert len(changed) == 2


@pytest.mark.parametrize("model", ["gemma2", "gemma3_text"], indirect=True)
def test_the_rounding_of_a_norm_is_made_up_for(model: StreamedModel) -> None:
    block = model.block(0)
    fold = fold_of(model, block, block.inputs[0], torch.bfloat16)
    scales = torch.linspace(0.3, 7, 64)
    effective = fold.effective(scales)
    before = block.tensors["input_layernorm.weight"] + 1
    after = fold.norm(scales)["input_layernorm.weight"].float() + 1
    torch.testing.assert_close(after * effective, before)
    assert not torch.equal(effective, scales)
    torch.testing.assert_close(effective, scales, rtol=0.2, atol=0)


def test_heads_that_share_values_share_scales(model: StreamedModel) -> None:
    block = model.block(0)
    fold = fold_of(model, block, block.inputs[1], torch.bfloat16)
    tied = fold.tie(torch.linspace(0.5, 4, 64)).unflatten(0, (2, 2, 16))
    assert torch.equal(tied[:, 0], tied[:, 1])
    expected = torch.linspace(0.5, 4, 64).unflatten(0, (2, 2, 16)).log().mean(1).exp()
    torch.testing.assert_close(tied[:, 0], expected)
