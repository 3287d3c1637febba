"""The error that ``alpha: auto`` goes by, against one computed here from the block's weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quantlib.calibration.statistics import ChannelObserver, TokenSample
from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.models import model_registry
from quantlib.models.decoder import DecoderBlock
from quantlib.outlier_suppression import SmoothQuantSuppressor
from quantlib.outlier_suppression.smooth_quant import CANDIDATES
from quantlib.recipe import QuantizationSection

GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
OPTIONS = {"alpha": "auto", "pairs": ["norms", "value_output", "up_down"]}


@pytest.fixture
def block(make_model: Callable[..., Path], tmp_path: Path) -> DecoderBlock:
    """A block with outlier channels behind both norms and in v and up."""
    folder = make_model(tmp_path / "m", dtype="float32", **GROUPED)
    checkpoint = Checkpoint.open(FolderSource(folder))
    adapter = model_registry.adapter_for(checkpoint.config)
    block = adapter.load_model(checkpoint, torch.device("cpu")).block(0)
    for name, factor in (("input_layernorm", 60), ("post_attention_layernorm", 20)):
        block.tensors[f"{name}.weight"][[3, 40]] *= factor
    for name in ("self_attn.v_proj", "mlp.up_proj"):
        block.tensors[f"{name}.weight"][5] *= 40
    return block


def int8(values: Tensor, steps: Tensor) -> Tensor:
    return (values / steps).round().clamp(-128, 127) * steps


def brute_force(
    block: DecoderBlock, hidden: Tensor, held_out: Tensor, alpha: float, static: bool
) -> float:
    """The sum of all linears' relative errors: weights and int8 inputs rounded to nearest.

    On the tokens that are held out of the extremes.
    """
    inputs: dict[str, Tensor] = {}
    block.forward(hidden, lambda group, x: inputs.update({group.name: x.flatten(0, 1).double()}))
    total = 0.0
    for group in block.groups:
        x = inputs[group.name]
        weights = [block.tensors[f"{name}.weight"].double() for name in group.linears]
        seen, x = x[~held_out], x[held_out]
        largest_x = seen.abs().amax(0)
        largest_w = torch.cat(weights).abs().amax(0)
        if group.name == "attention_output":  # heads 0 and 1 read value head 0, 2 and 3 the other
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


@pytest.mark.parametrize("activations", ["int8", "int8-static"])
@pytest.mark.usefixtures("float32_products")
@torch.no_grad()
def test_auto_finds_what_trying_every_alpha_finds(block: DecoderBlock, activations: str) -> None:
    hidden = torch.randn(4, 32, 64, generator=torch.Generator().manual_seed(1))
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
    observer = suppressor.observer(block, 128, section)
    for part in hidden.split(1):
        block.forward(part, observer)
    statistics = {name: value.numpy() for name, value in observer.tensors().items()}
    sample = TokenSample(128, 32)
    sample.add(torch.arange(128)[:, None])
    held_out = torch.zeros(128, dtype=torch.bool)
    held_out[sample.tokens()[:, 0]] = True
    static = activations != "int8"
    expected = [brute_force(block, hidden, held_out, alpha, static) for alpha in CANDIDATES]
    measured = sum(statistics[f"{group.name}.alpha_errors"] for group in block.groups)
    assert measured == pytest.approx(expected, rel=0.01)
    assert max(expected) > 1.3 * min(expected), "no alpha is better, so this test could not fail"
    chosen = suppressor.scales(0, block.groups, statistics)
    assert chosen.alpha == CANDIDATES[int(np.argmin(expected))]


@torch.no_grad()
def test_extremes_are_those_of_all_tokens(block: DecoderBlock) -> None:
    hidden = torch.randn(2, 32, 64, generator=torch.Generator().manual_seed(1))
    plain = ChannelObserver(block)
    observer = SmoothQuantSuppressor(OPTIONS).observer(block, 64, QuantizationSection())
    for part in hidden.split(1):
        block.forward(part, plain)
        block.forward(part, observer)
    found = observer.tensors()
    assert all(torch.equal(found[name], wanted) for name, wanted in plain.tensors().items())


@torch.no_grad()
def test_what_is_rounded_decides_the_errors(block: DecoderBlock) -> None:
    hidden = torch.randn(1, 32, 64, generator=torch.Generator().manual_seed(1))

    def errors(**section: Any) -> np.ndarray:
        suppressor = SmoothQuantSuppressor({"alpha": "auto"})
        observer = suppressor.observer(block, 32, QuantizationSection.model_validate(section))
        block.forward(hidden, observer)
        return observer.tensors()["mlp_input.alpha_errors"].numpy()

    eight = {"bits": 8, "group_size": -1}
    weights_only = errors(method="minmax", weights=eight)
    with_inputs = errors(method="minmax", weights=eight, activations="int8")
    four_bits = errors(method="minmax", weights={"bits": 4, "group_size": 32})
    assert (weights_only < with_inputs).all()
    assert (with_inputs < four_bits).all()


@torch.no_grad()
def test_what_cannot_be_quantized_is_not_measured(block: DecoderBlock) -> None:
    section = QuantizationSection.model_validate(
        {"method": "gptq", "weights": {"bits": 4, "group_size": 128}}
    )
    observer = SmoothQuantSuppressor(OPTIONS).observer(block, 32, section)
    block.forward(torch.randn(1, 32, 64), observer)
    measured = {name for name in observer.tensors() if name.endswith("alpha_errors")}
    # 64 columns are no group of 128; down_proj has 128.
    assert measured == {"mlp_output.alpha_errors"}
