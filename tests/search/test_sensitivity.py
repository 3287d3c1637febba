"""What rounding a part of a block costs, against transformers' own model with rounded weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from walking import opened

from quantlib.numbers.inputs import round_input
from quantlib.quantizers.rounding import round_within_range
from quantlib.recipe import Recipe
from quantlib.search.candidates import Space, search_space
from quantlib.search.sensitivity import block_errors

Fixture = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("float32_products")

MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "hidden_size": 64,
}


def measured(folder: Path, candidates: list[str]) -> tuple[Space, dict[int, Any], Any]:
    """What there was to choose from, the errors of each block, and the tokens."""
    model = opened(folder)
    section = {"budget": "5bits", "candidates": candidates}
    recipe = Recipe.model_validate({"quantization": section})
    space = search_space(recipe, model.checkpoint, model.adapter)
    schemes = {name: each.scheme for name, each in space.candidates.items()}
    tokens = torch.randint(3, 60, (3, 24), generator=torch.Generator().manual_seed(1))
    found = {}
    with torch.no_grad():
        walk = model.walk(tokens, range(model.adapter.blocks))
        for block in walk:
            units = [unit for unit in space.units if unit.block == block.index]
            names = [name for name in block.tensors if name in block.tensors]
            before = {name: block.tensors[name].clone() for name in names}
            found[block.index] = block_errors(walk, block, units, schemes, torch.float32)
            for name, tensor in before.items():
                assert torch.equal(block.tensors[name], tensor), name
            walk.pass_through(block)
    return space, found, tokens


def block_outputs(model: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Hidden states after each block, before the last norm."""
    outputs: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(
            lambda _module, _given, output: outputs.append(
                output if isinstance(output, torch.Tensor) else output[0]
            )
        )
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return tuple(outputs)


def share(changed: torch.Tensor, clean: torch.Tensor) -> float:
    return float(((changed - clean).square().sum(-1) / clean.square().sum(-1)).mean())


@pytest.mark.parametrize("candidate", ["W4A16:32", "W8A8", "NVFP4"])
def test_errors_are_those_of_the_blocks_output(
    make_model: Fixture, tmp_path: Path, candidate: str
) -> None:
    folder = make_model(tmp_path / "model", "llama", dtype="float32", hidden_size=64)
    space, found, tokens = measured(folder, [candidate, "exact"])
    name = next(name for name in space.candidates if name != "exact")
    scheme = space.candidates[name].scheme
    assert scheme is not None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    clean = block_outputs(model, tokens)
    for unit in space.units:
        layer = model.model.layers[unit.block]
        modules = {linear: layer.get_submodule(linear) for linear in unit.linears}
        before = {linear: module.weight.data.clone() for linear, module in modules.items()}
        made = round_within_range(before, scheme.weights, torch.float32)
        handles = []
        for linear, module in modules.items():
            module.weight.data.copy_(made[linear].dequantize())
            if scheme.activations == "int8":
                handles.append(
                    module.register_forward_pre_hook(
                        lambda _module, given: (round_input(given[0], "int8"),)
                    )
                )
        changed = block_outputs(model, tokens)
        for handle in handles:
            handle.remove()
        for linear, module in modules.items():
            module.weight.data.copy_(before[linear])
        errors = found[unit.block][unit.name]
        assert errors["exact"] == 0
        if scheme.activations != "nvfp4":  # whose static number follows from the calibration
            expected = share(changed[unit.block], clean[unit.block])
            assert errors[name] == pytest.approx(expected, rel=1e-3)
        assert 0 < errors[name] < 1


def test_all_experts_of_a_block_are_one_part(make_model: Fixture, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "qwen3_moe", dtype="float32", **MOE)
    space, found, tokens = measured(folder, ["W4A16:32"])
    (experts,) = [unit for unit in space.units if unit.block == 1 and "experts" in unit.name]
    assert len(experts.linears) == 4 * 3
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    clean = block_outputs(model, tokens)
    module = model.model.layers[1].mlp.experts
    scheme = next(iter(space.candidates.values())).scheme
    assert scheme is not None
    for parameter in (module.gate_up_proj, module.down_proj):
        for expert in range(4):
            made = round_within_range({"": parameter.data[expert]}, scheme.weights, torch.float32)
            parameter.data[expert] = made[""].dequantize()
    expected = share(block_outputs(model, tokens)[1], clean[1])
    error = found[1][experts.name]["W4A16 in groups of 32"]
    assert error == pytest.approx(expected, rel=1e-3)
