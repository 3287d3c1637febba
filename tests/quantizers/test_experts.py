"""Experts are calibrated on the tokens that reach them, or on all where those are too few."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quantlib.calibration.statistics import HessianAccumulator
from quantlib.checkpoint.source import FolderSource
from quantlib.models import open_model
from quantlib.quantizers import GPTQQuantizer, GroupInputs, MinMaxQuantizer
from quantlib.quantizers.block import LinearError, quantize_block
from quantlib.recipe import QuantizationSection, WeightScheme

pytestmark = pytest.mark.usefixtures("float32_products")
SECTION = QuantizationSection(weights=WeightScheme(bits=4, group_size=32))
EXPERTS = 8


class Recorder(MinMaxQuantizer):
    """Rounds to nearest, and keeps the Hessians that it is given."""

    needs_hessian = True

    def __init__(self, section: QuantizationSection) -> None:
        super().__init__(section.model_copy(update={"method": "minmax"}))
        self.hessians: dict[str, Tensor] = {}

    def quantize(self, weights: Any, inputs: GroupInputs, stored: torch.dtype) -> Any:
        assert inputs.hessian is not None
        self.hessians.update(dict.fromkeys(weights, inputs.hessian))
        return super().quantize(weights, inputs, stored)


@pytest.fixture(scope="module")
def folder(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(
        tmp_path_factory.mktemp("m"),
        "qwen3_moe",
        dtype="float32",
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
    )


@pytest.fixture
def model(folder: Path) -> Any:
    checkpoint, adapter = open_model(FolderSource(folder))
    return adapter.load_model(checkpoint, torch.device("cpu"))


@pytest.fixture
def hidden(model: Any) -> Tensor:
    tokens = torch.randint(0, 512, (8, 64), generator=torch.Generator().manual_seed(0))
    return model.embed(tokens).float()


def run(model: Any, hidden: Tensor, quantizer: Any, minimum: int, batch: int = 4) -> Any:
    block = model.block(0)
    batches = list(hidden.split(batch))
    result = quantize_block(block, batches, quantizer, (), torch.float32, min_expert_tokens=minimum)
    return block, torch.cat(batches), result


def inputs_of(block: Any, hidden: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    block.forward(hidden, lambda group, x: seen.update({group.name: x}))
    return seen


def by_expert(errors: list[LinearError]) -> dict[int, LinearError]:
    return {error.expert: error for error in errors if error.expert is not None}


def hessian_of(x: Tensor) -> Tensor:
    accumulator = HessianAccumulator(x.shape[-1], x.device)
    accumulator.add(x)
    return accumulator.hessian()


def test_tokens_are_counted_and_experts_see_theirs(model: Any, hidden: Tensor) -> None:
    recorder = Recorder(SECTION)
    block, outputs, result = run(model, hidden, recorder, minimum=1)
    seen = inputs_of(block, hidden)  # of the block as it is now, its attention quantized
    errors = by_expert(result.errors)
    assert set(errors) == set(range(EXPERTS))
    for expert, error in errors.items():
        assert error.expert_tokens == len(seen[f"expert_{expert}_input"])
        assert error.calibrated_on == "routed"
        for kind, linear in (("input", "gate_proj"), ("output", "down_proj")):
            expected = hessian_of(seen[f"expert_{expert}_{kind}"])
            found = recorder.hessians[f"mlp.experts.{expert}.{linear}"]
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert sum(error.expert_tokens for error in errors.values()) == 2 * 8 * 64
    torch.testing.assert_close(outputs, block.forward(hidden), rtol=1e-5, atol=1e-5)


def test_attention_has_no_experts(model: Any, hidden: Tensor) -> None:
    _, _, result = run(model, hidden, Recorder(SECTION), minimum=1)
    (error,) = (error for error in result.errors if error.linear == "self_attn.o_proj")
    assert (error.expert, error.expert_tokens, error.calibrated_on) == (None, None, None)


def test_experts_with_too_few_tokens_see_all(model: Any, hidden: Tensor) -> None:
    recorder = Recorder(SECTION)
    _, _, plain = run(model, hidden, Recorder(SECTION), minimum=1)
    counts = sorted(error.expert_tokens for error in by_expert(plain.errors).values())
    minimum = counts[EXPERTS // 2]
    block, outputs, result = run(model, hidden, recorder, minimum)
    seen = inputs_of(block, hidden)
    errors = by_expert(result.errors)
    few = [expert for expert, error in errors.items() if error.calibrated_on == "all"]
    assert few == [expert for expert, e in errors.items() if e.expert_tokens < minimum]
    assert 0 < len(few) < EXPERTS
    walk = block.walk(hidden)
    for group in block.groups:
        _, x = next(walk)
        if group.expert in few:
            _, x = walk.send(True)
            assert x.numel() // x.shape[-1] == 8 * 64
        for linear in group.linears:
            torch.testing.assert_close(
                recorder.hessians[linear], hessian_of(x), rtol=1e-3, atol=1e-4
            )
    for expert, error in errors.items():
        assert error.expert_tokens == len(seen[f"expert_{expert}_input"])
    torch.testing.assert_close(outputs, block.forward(hidden), rtol=1e-5, atol=1e-5)


def test_batches_do_not_matter(model: Any, hidden: Tensor) -> None:
    runs = [run(model, hidden, Recorder(SECTION), 130, batch)[2] for batch in (1, 8)]
    decided = [
        [(e.linear, e.expert_tokens, e.calibrated_on) for e in result.errors] for result in runs
    ]
    assert decided[0] == decided[1]


def test_gptq_quantizes_an_expert_that_no_token_reaches(model: Any, hidden: Tensor) -> None:
    block = model.block(0)
    # All experts but the last get the same score, and the first of them are taken.
    router = block.tensors["mlp.gate.weight"]
    router[:-1] = router[:1]
    router[-1] = 0
    result = quantize_block(block, list(hidden.split(4)), GPTQQuantizer(SECTION), (), torch.float32)
    errors = by_expert(result.errors)
    idle = [expert for expert, error in errors.items() if error.expert_tokens == 0]
    assert idle
    for expert in idle:
        assert errors[expert].calibrated_on == "all"
        assert errors[expert].relative_error is not None
        assert 0 < errors[expert].relative_error < 0.1
        assert f"mlp.experts.{expert}.down_proj" in result.linears


def test_without_calibration_there_are_no_counts(model: Any) -> None:
    quantizer = MinMaxQuantizer(SECTION.model_copy(update={"method": "minmax"}))
    result = quantize_block(model.block(0), [], quantizer, (), torch.float32, min_expert_tokens=9)
    for error in by_expert(result.errors).values():
        assert (error.expert_tokens, error.calibrated_on) == (None, None)
    assert "mlp.experts.7.down_proj" in result.linears
    assert "mlp.gate" not in result.linears
