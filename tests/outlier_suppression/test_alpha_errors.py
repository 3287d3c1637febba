"""The error that ``alpha: auto`` goes by, against one computed here from the block's weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from walking import forward, hidden_states, opened

from quantlib.blockwise.statistics import ChannelObserver, TokenSample
from quantlib.models.layout import SharedInput
from quantlib.models.streamed import Block, StreamedModel
from quantlib.outlier_suppression import SmoothQuantSuppressor
from quantlib.outlier_suppression.base import BlockObserver
from quantlib.outlier_suppression.smooth_quant import CANDIDATES
from quantlib.quantization import QuantizationSection
from quantlib.schemes import LinearScheme, WeightScheme

pytestmark = pytest.mark.usefixtures("float32_products")
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
OPTIONS = {"alpha": "auto", "pairs": ["norms", "value_output", "up_down"]}


@pytest.fixture
def model(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> StreamedModel:
    """A model of which every sample is a batch."""
    monkeypatch.setattr("quantlib.models.streamed.batch_samples", lambda *_: 1)
    return opened(make_model(tmp_path / "m", dtype="float32", **GROUPED))


def add_outliers(block: Block) -> None:
    """Outlier channels behind both norms and in v and up."""
    for name, factor in (("input_layernorm", 60), ("post_attention_layernorm", 20)):
        block.tensors[f"{name}.weight"][[3, 40]] *= factor
    for name in ("self_attn.v_proj", "mlp.up_proj"):
        block.tensors[f"{name}.weight"][5] *= 40


def observed(
    model: StreamedModel, hidden: Tensor, observe: Callable[[Block, SharedInput, Any], None]
) -> None:
    """Calls a function with a block that has outliers, and what comes to its shared inputs."""
    blocks: list[Block] = []

    def change(block: Block) -> None:
        add_outliers(block)
        blocks.append(block)

    def at_input(shared: SharedInput, inputs: Sequence[Tensor]) -> None:
        observe(blocks[0], shared, inputs)

    forward(model, hidden, at_input, change)


def observer_tensors(
    model: StreamedModel, hidden: Tensor, make: Callable[[Block], Any]
) -> dict[str, Tensor]:
    """What an observer of the block found."""
    made: list[Any] = []

    def observe(block: Block, shared: SharedInput, inputs: Any) -> None:
        if not made:
            made.append(make(block))
        made[0](shared, inputs)

    observed(model, hidden, observe)
    tensors: dict[str, Tensor] = made[0].tensors()
    return tensors


def int8(values: Tensor, steps: Tensor) -> Tensor:
    return (values / steps).round().clamp(-128, 127) * steps


def brute_force(
    case: dict[str, tuple[Tensor, list[Tensor]]], held_out: Tensor, alpha: float, static: bool
) -> float:
    """The sum of all linears' relative errors: weights and int8 inputs rounded to nearest.

    On the tokens that are held out of the extremes.
    """
    total = 0.0
    for name, (x, weights) in case.items():
        seen, x = x[~held_out], x[held_out]
        largest_x = seen.abs().amax(0)
        largest_w = torch.cat(weights).abs().amax(0)
        if name == "self_attn.o_proj":  # heads 0 and 1 read value head 0, 2 and 3 the other
            for kind in (largest_x, largest_w):
                heads = kind.view(2, 2, 16)
                heads.copy_(heads.amax(1, keepdim=True).expand(2, 2, 16).clone())
        scales = largest_x**alpha / largest_w ** (1 - alpha)
        smooth = x / scales
        largest = smooth.abs().amax(1, keepdim=True)
        if static:
            largest = (largest_x / scales).max()
        rounded = int8(smooth, largest / 127)
        for weight in weights:
            scaled = weight * scales
            low, high = scaled.amin(1, keepdim=True), scaled.amax(1, keepdim=True)
            step = (high - low) / 255
            zero = (-low / step).round()
            codes = ((scaled / step).round() + zero).clamp(0, 255) - zero
            wanted = x @ weight.t()
            total += float(
                (rounded @ (codes * step).t() - wanted).square().sum() / wanted.square().sum()
            )
    return total


def observer_of(
    suppressor: SmoothQuantSuppressor, tokens: int, section: QuantizationSection
) -> Callable[[Block], BlockObserver]:
    """Observes a block whose linears all are of a section's scheme."""
    scheme = section.rest
    assert scheme is not None

    def observer(block: Block) -> BlockObserver:
        linears = (linear for shared in block.inputs for linear in shared.linears)
        return suppressor.observer(block, tokens, dict.fromkeys(linears, scheme))

    return observer


@pytest.mark.parametrize("activations", ["int8", "int8-static"])
def test_auto_finds_what_trying_every_alpha_finds(model: StreamedModel, activations: str) -> None:
    hidden = hidden_states(4, 32, seed=1)
    section = QuantizationSection.model_validate(
        {
            "method": "gptq",
            # A symmetric scale puts the extreme weight halfway between two codes, where the last
            # digit decides.
            "weights": {"bits": 8, "group_size": -1, "symmetric": False},
            "activations": activations,
        }
    )
    suppressor = SmoothQuantSuppressor(OPTIONS)
    found = observer_tensors(model, hidden, observer_of(suppressor, 128, section))
    statistics = {name: value.numpy() for name, value in found.items()}
    sample = TokenSample(128, 32)
    sample.add(torch.arange(128)[:, None])
    held_out = torch.zeros(128, dtype=torch.bool)
    held_out[sample.tokens()[:, 0]] = True
    case: dict[str, tuple[Tensor, list[Tensor]]] = {}

    def keep(block: Block, shared: SharedInput, inputs: Sequence[Tensor]) -> None:
        weights = [block.weight(name).double() for name in shared.linears]
        case[shared.name] = (torch.cat(list(inputs)).flatten(0, 1).double(), weights)

    observed(model, hidden, keep)
    static = activations != "int8"
    expected = [brute_force(case, held_out, alpha, static) for alpha in CANDIDATES]
    measured = sum(statistics[f"{name}.alpha_errors"] for name in case)
    assert measured == pytest.approx(expected, rel=0.01)
    assert max(expected) > 1.3 * min(expected), "no alpha is better, so this test could not fail"
    chosen = suppressor.scales(1, model.adapter.inputs(1), statistics)
    assert chosen.alpha == CANDIDATES[int(np.argmin(expected))]


def test_extremes_are_those_of_all_tokens(model: StreamedModel) -> None:
    hidden, suppressor = hidden_states(2, 32, seed=1), SmoothQuantSuppressor(OPTIONS)
    plain = observer_tensors(model, hidden, ChannelObserver)
    section = QuantizationSection(weights=WeightScheme(group_size=32))
    found = observer_tensors(model, hidden, observer_of(suppressor, 64, section))
    assert found.keys() > plain.keys()
    assert all(torch.equal(found[name], wanted) for name, wanted in plain.items())


def test_what_is_rounded_decides_the_errors(model: StreamedModel) -> None:
    hidden, suppressor = hidden_states(seed=1), SmoothQuantSuppressor({"alpha": "auto"})

    def errors(**fields: Any) -> np.ndarray:
        section = QuantizationSection.model_validate(fields)
        found = observer_tensors(model, hidden, observer_of(suppressor, 512, section))
        return found["mlp.gate_proj.alpha_errors"].numpy()

    eight = {"bits": 8, "group_size": -1}
    weights_only = errors(method="minmax", weights=eight)
    with_inputs = errors(method="minmax", weights=eight, activations="int8")
    four_bits = errors(method="minmax", weights={"bits": 4, "group_size": 32})
    assert (weights_only < with_inputs).all()
    assert (with_inputs < four_bits).all()


def test_what_cannot_be_quantized_is_not_measured(model: StreamedModel) -> None:
    suppressor = SmoothQuantSuppressor(OPTIONS)
    scheme = LinearScheme(weights=WeightScheme(group_size=128))
    found = observer_tensors(
        model,
        hidden_states(1, 32),
        lambda block: suppressor.observer(
            block, 32, {"mlp.down_proj": scheme, "mlp.up_proj": scheme}
        ),
    )
    # gate_proj, which stays exact, reads what up_proj reads.
    assert {name for name in found if name.endswith("alpha_errors")} == {
        "mlp.down_proj.alpha_errors"
    }
