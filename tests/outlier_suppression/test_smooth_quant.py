from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.models import model_registry
from quantlib.models.base import LinearGroup, Producer
from quantlib.models.streamed import StreamedModel
from quantlib.outlier_suppression import SmoothQuantSuppressor
from quantlib.outlier_suppression.smooth_quant import CANDIDATES, pair_of
from quantlib.recipe import QuantizationSection

ALL_PAIRS = ["norms", "value_output", "up_down"]
NORM = LinearGroup("mlp_input", ("mlp.gate_proj", "mlp.up_proj"), Producer("norm", norm=True))
SHARED = LinearGroup(
    "attention_output", ("self_attn.o_proj",), Producer("self_attn.v_proj", head_dim=2, repeats=2)
)


def statistics_of(group: LinearGroup, inputs: list[float], weights: list[float]) -> dict[str, Any]:
    return {
        f"{group.name}.input_absmax": np.array(inputs, np.float32),
        f"{group.name}.weight_absmax": np.array(weights, np.float32),
    }


def scales_of(options: Mapping[str, Any], group: LinearGroup, *extremes: list[float]) -> np.ndarray:
    chosen = SmoothQuantSuppressor(options).scales(0, [group], statistics_of(group, *extremes))
    return chosen.scales[group.name]


@pytest.mark.parametrize(
    ("alpha", "expected"), [(0.5, [4.0, 0.5]), (1.0, [16.0, 1.0]), (0.0, [1.0, 0.25])]
)
def test_scales_follow_the_paper(alpha: float, expected: list[float]) -> None:
    scales = scales_of({"alpha": alpha}, NORM, [16.0, 1.0, 0.0], [1.0, 4.0, 0.0])
    assert scales[:2] == pytest.approx(expected)
    assert np.isfinite(scales).all()
    assert (scales > 0).all()


def test_heads_that_share_values_share_the_largest_extremes() -> None:
    # Two value heads of two channels, each read by two query heads.
    inputs = [1.0, 2.0, 9.0, 1.0, 1.0, 1.0, 4.0, 25.0]
    scales = scales_of({"alpha": 0.5}, SHARED, inputs, [4.0, 1.0] + [1.0] * 6)
    assert scales == pytest.approx([1.5, 2**0.5, 1.5, 2**0.5, 2.0, 5.0, 2.0, 5.0])


def test_each_block_has_its_alpha() -> None:
    suppressor = SmoothQuantSuppressor({"alpha": [0.0, 1.0]})
    statistics = statistics_of(NORM, [16.0], [4.0])
    for block, expected in ((0, 0.25), (1, 16.0)):
        chosen = suppressor.scales(block, [NORM], statistics)
        assert chosen.alpha == float(block)
        assert chosen.scales["mlp_input"] == pytest.approx([expected])


def test_auto_takes_the_least_sum_over_the_scaled_groups() -> None:
    suppressor = SmoothQuantSuppressor({"alpha": "auto"})
    errors = np.ones((2, len(CANDIDATES)), np.float32)
    errors[0, 2], errors[1, 2] = 0.1, 2.0  # best for one group, worst for both
    errors[:, 4] = 0.8
    statistics = statistics_of(NORM, [16.0], [1.0]) | statistics_of(SHARED, [1.0] * 8, [1.0] * 8)
    statistics |= {"mlp_input.alpha_errors": errors[0], "attention_output.alpha_errors": errors[1]}
    assert suppressor.scales(0, [NORM, SHARED], statistics).alpha == CANDIDATES[4]
    alone = suppressor.scales(0, [NORM], statistics)
    assert alone.alpha == CANDIDATES[2]
    assert alone.scales["mlp_input"] == pytest.approx([16.0 ** CANDIDATES[2]])


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 1.5},
        {"alpha": True},
        {"alpha": "best"},
        {"alpha": [0.5, -1]},
        {"pairs": []},
        {"pairs": ["all"]},
    ],
)
def test_other_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        SmoothQuantSuppressor(options)
    (fault,) = refused.value.errors()
    assert fault["loc"][0] in options


@pytest.fixture(params=["llama", "qwen2"])
def model(request: Any, make_model: Callable[..., Path], tmp_path: Path) -> StreamedModel:
    """With two value heads for four query heads; qwen2 with biases."""
    grouped = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    return open_model(make_model(tmp_path / "m", request.param, dtype="float32", **grouped))


def open_model(folder: Path) -> StreamedModel:
    checkpoint = Checkpoint.open(FolderSource(folder))
    adapter = model_registry.adapter_for(checkpoint.config)
    return adapter.load_model(checkpoint, torch.device("cpu"))


SECTION = QuantizationSection.model_validate(
    {"method": "minmax", "weights": {"bits": 8, "group_size": -1}, "activations": "int8"}
)
GROUPS = {
    "norms": ("attention_input", "mlp_input"),
    "value_output": ("attention_output",),
    "up_down": ("mlp_output",),
}


@pytest.mark.usefixtures("float32_products")
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pairs", [["norms"], ["value_output"], ["up_down"], ALL_PAIRS])
@torch.no_grad()
def test_folding_keeps_the_function_and_scales_the_inputs(
    model: StreamedModel, pairs: list[str], stored: torch.dtype
) -> None:
    hidden = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0))
    before, after = model.block(0), model.block(0)
    suppressor = SmoothQuantSuppressor({"pairs": pairs})
    observer = suppressor.observer(before, 32, SECTION)
    plain: dict[str, torch.Tensor] = {}

    def observe(group: LinearGroup, x: torch.Tensor) -> None:
        observer(group, x)
        plain[group.name] = x

    expected = before.forward(hidden, observe)
    statistics = {name: value.numpy() for name, value in observer.tensors().items()}
    groups = [group for group in before.groups if suppressor.scaled(group)]
    assert {group.name for group in groups} == {name for pair in pairs for name in GROUPS[pair]}
    chosen = suppressor.scales(0, groups, statistics).scales
    scales = {name: torch.from_numpy(values) for name, values in chosen.items()}
    assert all(scale.std() > 0.1 for scale in scales.values())
    changed = suppressor.apply(after, scales, stored)
    assert all(tensor.dtype is stored for tensor in changed.values())
    expected_changes = {"input_layernorm.weight", "post_attention_layernorm.weight"}
    if "norms" not in pairs:
        expected_changes = set()
    if "value_output" in pairs and "self_attn.v_proj.bias" in after.tensors:
        expected_changes.add("self_attn.v_proj.bias")
    assert set(changed) == expected_changes

    found: dict[str, torch.Tensor] = {}
    output = after.forward(hidden, lambda group, x: found.update({group.name: x}))
    # A norm's rounding to bfloat16 is made up for; a bias's is not.
    exact = stored is torch.float32 or not any(name.endswith("bias") for name in changed)
    tolerance = 1e-4 if exact else 2e-2
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    if stored is torch.float32:
        for name, x in found.items():
            wanted = plain[name] / scales[name] if name in scales else plain[name]
            torch.testing.assert_close(x, wanted, rtol=1e-4, atol=1e-4)


def test_pairs_are_told_from_the_producer() -> None:
    down = LinearGroup("mlp_output", ("mlp.down_proj",), Producer("mlp.up_proj"))
    assert [pair_of(group) for group in (NORM, SHARED, down)] == ALL_PAIRS
    assert pair_of(LinearGroup("mlp_output", ("mlp.down_proj",))) is None
