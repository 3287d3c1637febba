"""Folded scales leave a block's function as it was."""

from collections.abc import Mapping
from dataclasses import replace
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
from quantlib.quantizers import GroupInputs, MinMaxQuantizer, QuantizedGroup
from quantlib.quantizers.block import quantize_block
from quantlib.recipe import QuantizationSection, WeightScheme

pytestmark = pytest.mark.usefixtures("float32_products")
SECTION = QuantizationSection(method="minmax", weights=WeightScheme(bits=8, group_size=32))
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


@pytest.fixture(params=["llama", "qwen2"])
def model(request: Any, make_model: Any, tmp_path: Path) -> StreamedModel:
    folder = make_model(tmp_path / "m", request.param, dtype="float32", **GROUPED)
    checkpoint = Checkpoint.open(FolderSource(folder))
    adapter = model_registry.adapter_for(checkpoint.config)
    return adapter.load_model(checkpoint, torch.device("cpu"))


class ScalingQuantizer(MinMaxQuantizer):
    """Divides every input by scales of its own."""

    def quantize(
        self, weights: Mapping[str, Tensor], inputs: GroupInputs, stored: torch.dtype
    ) -> QuantizedGroup:
        assert inputs.fold is not None
        columns = next(iter(weights.values())).shape[1]
        wanted = torch.rand(columns, generator=torch.Generator().manual_seed(columns)) * 2 + 0.5
        scales = inputs.fold.effective(inputs.fold.tie(wanted))
        scaled = {name: weight * scales for name, weight in weights.items()}
        return QuantizedGroup(super().quantize(scaled, inputs, stored).linears, scales)


@pytest.mark.parametrize(
    "exact", [(), ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")]
)
@torch.no_grad()
def test_a_quantizer_may_scale_every_input(model: StreamedModel, exact: tuple[str, ...]) -> None:
    hidden = torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(0))
    batches = [hidden.clone()]
    reference = model.block(1).forward(hidden)
    result = quantize_block(
        model.block(1), batches, ScalingQuantizer(SECTION), exact, torch.float32
    )
    written = model.block(1)
    written.tensors |= result.changed
    for name, linear in result.linears.items():
        written.tensors[f"{name}.weight"] = linear.dequantize()
    output = written.forward(hidden)
    torch.testing.assert_close(output, batches[0], rtol=1e-3, atol=1e-3)
    error = (output - reference).norm() / reference.norm()
    assert error < 0.04
    changed = {"post_attention_layernorm.weight"}
    changed |= {f"{name}.weight" for name in exact if name.endswith("v_proj")}
    changed |= {"input_layernorm.weight"} if not exact else set()
    changed |= {name for name in written.tensors if name.endswith("v_proj.bias")}
    assert set(result.changed) == changed


@torch.no_grad()
def test_the_rounding_of_a_norm_is_made_up_for(model: StreamedModel) -> None:
    block = model.block(0)
    norms = replace(block.settings.norms, offset=1.0)
    block.settings = replace(block.settings, norms=norms)
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
