from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from walking import forward, hidden_states, opened

from quantlib.models.layout import Producer, SharedInput
from quantlib.models.streamed import Block, StreamedModel
from quantlib.outlier_suppression import SmoothQuantSuppressor
from quantlib.outlier_suppression.smooth_quant import CANDIDATES, pair_of
from quantlib.quantization import QuantizationSection

ALL_PAIRS = ["norms", "value_output", "up_down"]


def shared_input(*linears: str, **producer: Any) -> SharedInput:
    place = Producer(**producer) if producer else None
    return SharedInput(name=linears[0], linears=linears, producer=place)


NORM = shared_input("mlp.gate_proj", "mlp.up_proj", name="norm", norm=True)
SHARED = shared_input("self_attn.o_proj", name="self_attn.v_proj", head_dim=2, repeats=2)


def statistics_of(shared: SharedInput, inputs: list[float], weights: list[float]) -> dict[str, Any]:
    return {
        f"{shared.name}.input_absmax": np.array(inputs, np.float32),
        f"{shared.name}.weight_absmax": np.array(weights, np.float32),
    }


def scales_of(
    options: Mapping[str, Any], shared: SharedInput, *extremes: list[float]
) -> np.ndarray:
    chosen = SmoothQuantSuppressor(options).scales(0, [shared], statistics_of(shared, *extremes))
    return chosen.scales[shared.name]


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
        assert chosen.scales["mlp.gate_proj"] == pytest.approx([expected])


def test_auto_takes_the_least_sum_over_the_scaled_groups() -> None:
    suppressor = SmoothQuantSuppressor({"alpha": "auto"})
    errors = np.ones((2, len(CANDIDATES)), np.float32)
    errors[0, 2], errors[1, 2] = 0.1, 2.0  # best for one input, worst for both
    errors[:, 4] = 0.8
    statistics = statistics_of(NORM, [16.0], [1.0]) | statistics_of(SHARED, [1.0] * 8, [1.0] * 8)
    statistics |= {
        "mlp.gate_proj.alpha_errors": errors[0],
        "self_attn.o_proj.alpha_errors": errors[1],
    }
    assert suppressor.scales(0, [NORM, SHARED], statistics).alpha == CANDIDATES[4]
    alone = suppressor.scales(0, [NORM], statistics)
    assert alone.alpha == CANDIDATES[2]
    assert alone.scales["mlp.gate_proj"] == pytest.approx([16.0 ** CANDIDATES[2]])


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
    return opened(make_model(tmp_path / "m", request.param, dtype="float32", **grouped))


SECTION = QuantizationSection.model_validate(
    {"method": "minmax", "weights": {"bits": 8, "group_size": -1}, "activations": "int8"}
)
NORMS = {"input_layernorm.weight", "post_attention_layernorm.weight"}
INPUTS = {
    "norms": ("self_attn.q_proj", "mlp.gate_proj"),
    "value_output": ("self_attn.o_proj",),
    "up_down": ("mlp.down_proj",),
}


@pytest.mark.usefixtures("float32_products")
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pairs", [["norms"], ["value_output"], ["up_down"], ALL_PAIRS])
def test_folding_keeps_the_function_and_scales_the_inputs(
    model: StreamedModel, pairs: list[str], stored: torch.dtype
) -> None:
    hidden = hidden_states(2, 16)
    suppressor = SmoothQuantSuppressor({"pairs": pairs})
    observers: list[Any] = []
    plain: dict[str, Tensor] = {}

    def observe(shared: SharedInput, inputs: Sequence[Tensor]) -> None:
        observers[0](shared, inputs)
        plain[shared.name] = torch.cat(list(inputs))

    def watch(block: Block) -> None:
        observers.append(suppressor.observer(block, 32, {}))

    expected = forward(model, hidden, observe, watch)
    statistics = {name: value.numpy() for name, value in observers[0].tensors().items()}
    inputs = [shared for shared in model.adapter.inputs(1) if suppressor.scaled(shared)]
    assert {shared.name for shared in inputs} == {name for pair in pairs for name in INPUTS[pair]}
    chosen = suppressor.scales(1, inputs, statistics).scales
    scales = {name: torch.from_numpy(values) for name, values in chosen.items()}
    assert all(scale.std() > 0.1 for scale in scales.values())
    changed: dict[str, Tensor] = {}

    def fold(block: Block) -> None:
        block.stored = dict.fromkeys(block.stored, stored)
        changed.update(suppressor.apply(block, inputs, scales))

    found: dict[str, Tensor] = {}
    output = forward(
        model, hidden, lambda shared, x: found.update({shared.name: torch.cat(list(x))}), fold
    )
    wanted_changes = NORMS if "norms" in pairs else set()
    if "value_output" in pairs and model.adapter.config["model_type"] == "qwen2":
        wanted_changes = wanted_changes | {"self_attn.v_proj.bias"}
    assert set(changed) == wanted_changes
    assert all(tensor.dtype is stored for tensor in changed.values())
    # A norm's rounding to bfloat16 is made up for; a bias's is not.
    exact = stored is torch.float32 or not any(name.endswith("bias") for name in changed)
    tolerance = 1e-4 if exact else 2e-2
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    if stored is torch.float32:
        for name, x in found.items():
            wanted = plain[name] / scales[name] if name in scales else plain[name]
            torch.testing.assert_close(x, wanted, rtol=1e-4, atol=1e-4)


def test_pairs_are_told_from_the_producer() -> None:
    down = shared_input("mlp.down_proj", name="mlp.up_proj")
    assert [pair_of(shared) for shared in (NORM, SHARED, down)] == ALL_PAIRS
    assert pair_of(shared_input("mlp.down_proj")) is None
