"""Folded scales leave a block's function as it was."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.models import model_registry
from quantlib.models.folding import Fold
from quantlib.models.streamed import StreamedModel
from quantlib.outlier_suppression import SmoothQuantSuppressor
from quantlib.quantizers import GroupInputs, MinMaxQuantizer, QuantizedGroup
from quantlib.quantizers.block import quantize_block
from quantlib.recipe import QuantizationSection, WeightScheme

pytestmark = pytest.mark.usefixtures("float32_products")
SECTION = QuantizationSection(method="minmax", weights=WeightScheme(bits=8, group_size=32))
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


@pytest.fixture(params=["llama", "qwen2", "gemma2", "gemma3_text", "phi3", "olmo2"])
def model(request: Any, make_model: Any, tmp_path: Path) -> StreamedModel:
    folder = make_model(tmp_path / "m", request.param, dtype="float32", **GROUPED)
    checkpoint = Checkpoint.open(FolderSource(folder))
    adapter = model_registry.adapter_for(checkpoint.config)
    return adapter.load_model(checkpoint, torch.device("cpu"))


class ScalingQuantizer(MinMaxQuantizer):
    """Divides every input that may be scaled by scales of its own."""

    def quantize(
        self, weights: Mapping[str, Tensor], inputs: GroupInputs, stored: torch.dtype
    ) -> QuantizedGroup:
        if inputs.fold is None:
            return super().quantize(weights, inputs, stored)
        columns = next(iter(weights.values())).shape[1]
        wanted = torch.rand(columns, generator=torch.Generator().manual_seed(columns)) * 2 + 0.5
        scales = inputs.fold.effective(inputs.fold.tie(wanted))
        scaled = {name: weight * scales for name, weight in weights.items()}
        return QuantizedGroup(super().quantize(scaled, inputs, stored).linears, scales)


@pytest.mark.parametrize("exact_attention", [False, True])
@torch.no_grad()
def test_a_quantizer_may_scale_every_input(model: StreamedModel, exact_attention: bool) -> None:
    hidden = torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(0))
    batches = [hidden.clone()]
    block = model.block(1)
    exact = block.groups[0].linears if exact_attention else ()
    reference = model.block(1).forward(hidden)
    result = quantize_block(block, batches, ScalingQuantizer(SECTION), exact, torch.float32)
    written = model.block(1)
    written.tensors |= result.changed
    for name, linear in result.linears.items():
        written.tensors[f"{name}.weight"] = linear.dequantize()
    output = written.forward(hidden)
    torch.testing.assert_close(output, batches[0], rtol=1e-3, atol=1e-3)
    error = (output - reference).norm() / reference.norm()
    assert error < 0.04
    attention, values, mlp, _ = (group.producer for group in block.groups)
    changed = {f"{values.name}.bias"} & set(written.tensors) if values else set()
    changed |= {f"{values.name}.weight"} if values and exact_attention else set()
    changed |= {f"{attention.name}.weight"} if attention and not exact_attention else set()
    changed |= {f"{mlp.name}.weight"} if mlp else set()
    assert set(result.changed) == changed


@pytest.mark.parametrize("model", ["llama", "gemma2", "phi3"], indirect=True)
@torch.no_grad()
def test_smoothing_keeps_the_function(model: StreamedModel) -> None:
    hidden = torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(0))
    before, after = model.block(1), model.block(1)
    generator = torch.Generator().manual_seed(1)
    scales = {}
    for group in after.groups:
        assert group.producer is not None
        columns = after.tensors[f"{group.linears[0]}.weight"].shape[1]
        wanted = torch.rand(columns, generator=generator) * 4 + 0.5
        scales[group.name] = Fold.of(after, group.producer, columns, torch.float32).tie(wanted)
    changed = SmoothQuantSuppressor({}).apply(after, scales, torch.float32)
    torch.testing.assert_close(after.forward(hidden), before.forward(hidden), rtol=1e-3, atol=1e-3)
    for name in changed:
        assert not torch.allclose(after.tensors[name], before.tensors[name])


@pytest.mark.parametrize("model", ["gemma2", "gemma3_text"], indirect=True)
@torch.no_grad()
def test_the_rounding_of_a_norm_is_made_up_for(model: StreamedModel) -> None:
    block = model.block(0)
    producer = block.groups[0].producer
    assert producer is not None
    fold = Fold.of(block, producer, 64, torch.bfloat16)
    scales = torch.linspace(0.3, 7, 64)
    effective = fold.effective(scales)
    before = block.tensors["input_layernorm.weight"] + 1
    after = fold.tensors(scales)["input_layernorm.weight"].float() + 1
    torch.testing.assert_close(after * effective, before)
    assert not torch.equal(effective, scales)
    torch.testing.assert_close(effective, scales, rtol=0.2, atol=0)


def test_heads_that_share_values_share_scales(model: StreamedModel) -> None:
    block = model.block(0)
    producer = block.groups[1].producer
    assert producer is not None
    fold = Fold.of(block, producer, 64, torch.bfloat16)
    tied = fold.tie(torch.linspace(0.5, 4, 64)).unflatten(0, (2, 2, 16))
    assert torch.equal(tied[:, 0], tied[:, 1])
    expected = torch.linspace(0.5, 4, 64).unflatten(0, (2, 2, 16)).log().mean(1).exp()
    torch.testing.assert_close(tied[:, 0], expected)
