"""Experts are calibrated on the tokens that reach them, or on all where those are too few."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from walking import forward, hidden_states, inputs_of, of_all, opened, quantized, walk_of

from quantlib.blockwise.experts import Experts
from quantlib.blockwise.quantize_block import LinearError, quantize_block
from quantlib.blockwise.statistics import HessianAccumulator, TokenKinds
from quantlib.models.streamed import Block, StreamedModel
from quantlib.quantization import QuantizationSection
from quantlib.quantizers import (
    AWQQuantizer,
    BatchQuantizer,
    GPTQQuantizer,
    HQQQuantizer,
    InputStatistics,
    MinMaxQuantizer,
)
from quantlib.schemes import WeightScheme

pytestmark = pytest.mark.usefixtures("float32_products")
SECTION = QuantizationSection(weights=WeightScheme(bits=4, group_size=32))
EXPERTS = 8


class Recorder(MinMaxQuantizer):
    """Rounds to nearest, and keeps the Hessians that it is given."""

    needs_hessian = True

    def __init__(self, section: QuantizationSection) -> None:
        super().__init__(section.model_copy(update={"method": "minmax"}))
        self.hessians: dict[str, Tensor] = {}

    def quantize(self, weights: Any, inputs: InputStatistics, stored: torch.dtype) -> Any:
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
def model(folder: Path) -> StreamedModel:
    return opened(folder)


@pytest.fixture
def hidden() -> Tensor:
    return hidden_states()


def run(model: StreamedModel, hidden: Tensor, quantizer: Any, minimum: int) -> Any:
    return quantized(model, hidden, quantizer, min_expert_tokens=minimum)


def by_expert(errors: list[LinearError]) -> dict[int, LinearError]:
    return {error.expert: error for error in errors if error.expert is not None}


def hessian_of(x: Tensor) -> Tensor:
    accumulator = HessianAccumulator(x.shape[-1], x.device)
    accumulator.add(x)
    return accumulator.hessian()


def test_tokens_are_counted_and_experts_see_theirs(model: StreamedModel, hidden: Tensor) -> None:
    recorder = Recorder(SECTION)
    result, outputs = run(model, hidden, recorder, minimum=1)
    seen = inputs_of(model, hidden, written=result)
    errors = by_expert(result.errors)
    assert set(errors) == set(range(EXPERTS))
    for expert, error in errors.items():
        assert error.expert_tokens == len(seen[f"mlp.experts.{expert}.gate_proj"])
        assert error.calibrated_on == "routed"
        for linear in ("gate_proj", "down_proj"):
            name = f"mlp.experts.{expert}.{linear}"
            expected, found = hessian_of(seen[name]), recorder.hessians[name]
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert sum(error.expert_tokens for error in errors.values()) == 2 * 8 * 64
    again = forward(model, hidden, written=result)
    torch.testing.assert_close(outputs, again, rtol=1e-5, atol=1e-5)


def test_attention_has_no_experts(model: StreamedModel, hidden: Tensor) -> None:
    result, _ = run(model, hidden, Recorder(SECTION), minimum=1)
    (error,) = (error for error in result.errors if error.linear == "self_attn.o_proj")
    assert (error.expert, error.expert_tokens, error.calibrated_on) == (None, None, None)


def test_experts_with_too_few_tokens_see_all(model: StreamedModel, hidden: Tensor) -> None:
    recorder = Recorder(SECTION)
    plain, _ = run(model, hidden, Recorder(SECTION), minimum=1)
    counts = sorted(error.expert_tokens for error in by_expert(plain.errors).values())
    minimum = counts[EXPERTS // 2]
    result, outputs = run(model, hidden, recorder, minimum)
    errors = by_expert(result.errors)
    few = [expert for expert, error in errors.items() if error.calibrated_on == "all"]
    assert few == [expert for expert, e in errors.items() if e.expert_tokens < minimum]
    assert 0 < len(few) < EXPERTS
    walk = walk_of(model, hidden, 1)
    for block in walk:
        for standing in walk.standings(block, block.inputs):
            shared = standing.shared
            inputs = standing.inputs
            for linear in shared.linears:
                block.tensors[f"{linear}.weight"] = result.linears[linear].dequantize()
            if shared.expert is not None:
                routed = sum(len(x) for x in inputs)
                assert errors[shared.expert].expert_tokens == routed
            if shared.expert in few:
                inputs = [everyone() for everyone in standing.everyone]
                assert sum(len(x) for x in inputs) == 8 * 64
            for linear in shared.linears:
                torch.testing.assert_close(
                    recorder.hessians[linear],
                    hessian_of(torch.cat(inputs)),
                    rtol=1e-3,
                    atol=1e-4,
                )
    again = forward(model, hidden, written=result)
    torch.testing.assert_close(outputs, again, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 3, 8])
def test_tokens_of_experts_with_too_few_are_counted_by_kind(
    model: StreamedModel, hidden: Tensor, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    """By what every batch brings on its own: each sample is a kind, but for the last one."""
    monkeypatch.setattr("quantlib.models.streamed.batch_samples", lambda device, length: samples)
    labels = torch.arange(8, dtype=torch.int32).repeat_interleave(64)
    labels[labels == 7] = -1
    kinds = TokenKinds(labels, [f"kind {number}" for number in range(7)])
    result, _ = quantized(model, hidden, Recorder(SECTION), min_expert_tokens=10_000, kinds=kinds)
    errors = by_expert(result.errors)
    alone = [run(model, hidden[at : at + 1], Recorder(SECTION), 1)[0] for at in range(8)]
    for expert, error in errors.items():
        counts = [by_expert(each.errors)[expert].expert_tokens for each in alone]
        assert error.expert_kinds == {
            f"kind {at}": count for at, count in enumerate(counts[:7]) if count
        }
    enough, _ = quantized(model, hidden, Recorder(SECTION), min_expert_tokens=1, kinds=kinds)
    assert all(error.expert_kinds is None for error in enough.errors)


def test_which_kinds_reach_experts_with_too_few() -> None:
    records = [
        {"block": 0, "expert": expert, "expert_tokens": 9, "calibrated_on": on, "expert_kinds": of}
        for expert, on, of in (
            (0, "all", {"code": 6, "prose": 1}),
            (0, "all", {"code": 6, "prose": 1}),  # another linear of the same expert
            (1, "routed", None),
            (2, "all", {"prose": 3}),
        )
    ]
    experts = Experts.of(records)
    assert experts.kinds == {"code": 6, "prose": 4}
    rates = experts.reached_by({"prose": 8000, "math": 50, "code": 2000})
    assert rates == [("code", 3.0), ("prose", 0.5), ("math", 0.0)]
    assert not Experts.of(records[2:3]).reached_by({"prose": 8000})


def test_batches_do_not_matter(
    model: StreamedModel, hidden: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided = []
    for samples in (1, 8):
        monkeypatch.setattr("quantlib.models.streamed.batch_samples", lambda *_, n=samples: n)
        result, _ = run(model, hidden, Recorder(SECTION), 130)
        decided.append([(e.linear, e.expert_tokens, e.calibrated_on) for e in result.errors])
    assert decided[0] == decided[1]


def test_gptq_quantizes_an_expert_that_no_token_reaches(
    model: StreamedModel, hidden: Tensor
) -> None:
    def route(block: Block) -> None:
        # All experts but the last get the same score, and the first of them are taken.
        router = block.tensors["mlp.gate.weight"].clone()
        router[:-1] = router[:1]
        router[-1] = 0
        block.tensors["mlp.gate.weight"] = router

    result, _ = quantized(model, hidden, GPTQQuantizer(SECTION), change=route)
    errors = by_expert(result.errors)
    idle = [expert for expert, error in errors.items() if error.expert_tokens == 0]
    assert idle
    for expert in idle:
        assert errors[expert].calibrated_on == "all"
        assert errors[expert].relative_error is not None
        assert 0 < errors[expert].relative_error < 0.1
        assert f"mlp.experts.{expert}.down_proj" in result.linears


def test_without_calibration_there_are_no_counts(model: StreamedModel) -> None:
    quantizer = MinMaxQuantizer(SECTION.model_copy(update={"method": "minmax"}))
    block = model.block(0)
    quantizers = of_all(block, quantizer)
    result = quantize_block(block, None, quantizers, torch.float32, min_expert_tokens=9)
    for error in by_expert(result.errors).values():
        assert (error.expert_tokens, error.calibrated_on) == (None, None)
    assert "mlp.experts.7.down_proj" in result.linears
    assert "mlp.gate" not in result.linears


@pytest.mark.parametrize("quantizer", [GPTQQuantizer, AWQQuantizer, HQQQuantizer])
def test_experts_together_give_what_each_gives_alone(
    quantizer: type[BatchQuantizer],
    model: StreamedModel,
    hidden: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = by_expert(run(model, hidden, Recorder(SECTION), minimum=1)[0].errors)
    minimum = sorted(error.expert_tokens or 0 for error in counts.values())[EXPERTS // 2]
    exact = ["mlp.experts.2.gate_proj", "mlp.experts.4.down_proj", "mlp.experts.7.up_proj"]
    exact += [f"mlp.experts.5.{linear}_proj" for linear in ("gate", "up", "down")]
    read: list[int] = []
    at_hand: list[int] = []
    read_expert = model.reader.read_expert

    def reading(module: Any, expert: int) -> dict[str, Tensor]:
        read.append(expert)
        at_hand.append(len(module.walked_weights) + 1)
        return read_expert(module, expert)

    monkeypatch.setattr(model.reader, "read_expert", reading)
    found = []
    for at_once in (1, 3, 100):
        monkeypatch.setattr(
            "quantlib.blockwise.quantize_block.experts_at_once", lambda *_, n=at_once: n
        )
        found.append(
            quantized(model, hidden, quantizer(SECTION), exact=exact, min_expert_tokens=minimum)
        )
        assert read == list(range(EXPERTS))
        assert max(at_hand) == min(at_once, EXPERTS)
        read.clear()
        at_hand.clear()
    (alone, output), *others = found
    assert len({error.calibrated_on for error in alone.errors if error.expert is not None}) == 2
    for together, other_output in others:
        assert together.errors == alone.errors
        assert list(together.linears) == list(alone.linears)
        for name, linear in alone.linears.items():
            other = together.linears[name]
            assert torch.equal(other.codes, linear.codes)
            assert torch.equal(other.scales, linear.scales)
        assert torch.equal(other_output, output)
