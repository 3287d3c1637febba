"""What a search chooses from, and the rules that say what it chose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource, ReceiptSource
from quantlib.checks.linears import linear_schemes
from quantlib.checks.model import model_problems
from quantlib.checks.recipe import parse_recipe
from quantlib.errors import InvalidInputError
from quantlib.models import open_model
from quantlib.recipe import Recipe
from quantlib.search.candidates import (
    Space,
    rules_of,
    search_space,
    settled_candidates,
    trial_recipe,
    with_rules,
)
from quantlib.store import LocalStore

Fixture = Callable[..., Any]


def recipe_with(**section: Any) -> Recipe:
    short = {"sequence_length": 64}
    return Recipe.model_validate(
        {
            "quantization": {"budget": "5bits", **section},
            "calibration": short,
            "validation": short,
        }
    )


def opened_space(folder: Path, **section: Any) -> tuple[Space, Any, Any, Recipe]:
    checkpoint, adapter = open_model(FolderSource(folder))
    recipe = recipe_with(**section)
    return search_space(recipe, checkpoint, adapter), checkpoint, adapter, recipe


def llama(make_model: Fixture, folder: Path) -> Path:
    return make_model(folder, "llama", hidden_size=96, intermediate_size=256, num_attention_heads=3)


def test_an_open_size_is_each_that_goes(make_model: Fixture, tmp_path: Path) -> None:
    space, _, adapter, recipe = opened_space(llama(make_model, tmp_path))
    assert list(settled_candidates(recipe, adapter)) == [
        *(f"W4A16 in groups of {size}" for size in (128, 64, 32)),
        *(f"W8A16 in groups of {size}" for size in (128, 64, 32)),
        "exact",
    ]
    of_block = {unit.name: list(unit.bytes) for unit in space.units if unit.block == 0}
    assert list(of_block) == [
        "self_attn.qkv_proj",
        "self_attn.o_proj",
        "mlp.gate_up_proj",
        "mlp.down_proj",
    ]
    narrow = ["W4A16 in groups of 32", "W8A16 in groups of 32", "exact"]
    assert of_block["self_attn.qkv_proj"] == narrow
    assert len(of_block["mlp.down_proj"]) == 7


def test_sizes_are_those_of_the_files(
    make_model: Fixture, run_steps: Fixture, small_recipe: Fixture, tmp_path: Path
) -> None:
    folder = llama(make_model, tmp_path / "model")
    space, _, adapter, recipe = opened_space(folder, candidates=["W4A16:32"])
    chosen = {(unit.block, unit.name): "W4A16 in groups of 32" for unit in space.units}
    rules = rules_of(space, chosen, adapter)
    assert {rule.scheme for rule in rules} == {"W4A16"}
    section = with_rules(recipe, rules).quantization.model_dump(mode="json")
    section["method"] = "minmax"
    made = run_steps(LocalStore(tmp_path / "store"), small_recipe(quantization=section), folder)
    units = sum(next(iter(unit.bytes.values())) for unit in space.units)
    shapes = 16 * sum(len(unit.linears) for unit in space.units)  # weight_shape
    source = ReceiptSource(made.store, made.checkpoint)
    written = sum(info.bytes for info in Checkpoint.open(source).tensors.values())
    assert written == pytest.approx(space.fixed_bytes + units, abs=shapes)


def test_what_rules_and_ignore_name_is_not_searched(make_model: Fixture, tmp_path: Path) -> None:
    space, checkpoint, adapter, recipe = opened_space(
        llama(make_model, tmp_path),
        ignore=["down_proj"],
        schemes=[{"scheme": "FP8_DYNAMIC", "linears": ["attention"]}],
        candidates=["W4A16:32", "exact"],
    )
    assert {unit.name for unit in space.units} == {"mlp.gate_up_proj"}
    stored = sum(
        rows * columns * (1 if "attn" in linear else 2) + 2 * rows * ("attn" in linear)
        for block in range(adapter.blocks)
        for linear in adapter.linears(block)
        if "gate" not in linear and "up_proj" not in linear
        for rows, columns in [adapter.linear_shape(block, linear)]
    )
    assert space.fixed_linear_bytes == stored
    tried = trial_recipe(recipe, space, adapter)
    assert not model_problems(tried, checkpoint, adapter)
    schemes = linear_schemes(tried.quantization, adapter)[0]
    assert schemes["self_attn.q_proj"].name == "FP8_DYNAMIC"
    assert schemes["mlp.up_proj"].name == "W4A16"
    assert "mlp.down_proj" not in schemes


def test_rules_give_what_was_chosen_and_nothing_else(make_model: Fixture, tmp_path: Path) -> None:
    folder = make_model(
        tmp_path,
        "qwen3_moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        hidden_size=64,
        num_hidden_layers=4,
    )
    space, checkpoint, adapter, recipe = opened_space(folder)
    names = list(space.candidates)
    chosen = {}
    for number, unit in enumerate(space.units):
        fitting = [name for name in names if name in unit.bytes]
        chosen[unit.block, unit.name] = fitting[number % len(fitting)]
    found = with_rules(recipe, rules_of(space, chosen, adapter), "steps/choose/x.json")
    assert found.quantization.budget is None
    assert found.quantization.searched == "steps/choose/x.json"
    assert not model_problems(found, checkpoint, adapter)
    by_block = linear_schemes(found.quantization, adapter)
    for unit in space.units:
        expected = space.candidates[chosen[unit.block, unit.name]].scheme
        for linear in unit.linears:
            assert by_block[unit.block].get(linear) == expected, (unit, linear)


@pytest.mark.parametrize(
    ("section", "where", "what"),
    [
        ({"budget": "4.5"}, "quantization.budget", "4.5bits, 6.2GB, kl=0.02"),
        ({"candidates": ["W4A16"]}, "quantization", "give a budget as well"),
        ({"budget": "4bits", "candidates": ["W4A15"]}, "quantization.candidates.0", "W4A16?"),
        ({"budget": "4bits", "draft_layers": True}, "quantization.draft_layers", "search"),
        (
            {"budget": "4bits", "candidates": [{"scheme": "W4A16", "linears": ["mlp"]}]},
            "quantization.candidates",
            "for all linears",
        ),
        (
            {"budget": "4bits", "format": "awq", "candidates": ["W8A8", "W4A16"]},
            "quantization.format",
            "awq cannot hold this",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    section: dict[str, Any], where: str, what: str
) -> None:
    with pytest.raises(InvalidInputError) as refused:
        parse_recipe({"quantization": section})
    problems = refused.value.problems
    assert any(where in each.where and what in f"{each.what} {each.remedy}" for each in problems)
