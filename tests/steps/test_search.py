"""A budget through the steps: measured by ranges, chosen, and quantized as was chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recipes import QUICK

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.checks.recipe import parse_recipe
from quantlib.errors import InvalidInputError
from quantlib.manager import QuantizationManager
from quantlib.recipe import AskedRecipe
from quantlib.report.html import render_html
from quantlib.store import LocalStore, read_lineage

Fixture = Callable[..., Any]


def llama(make_model: Fixture, folder: Path) -> Path:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    return make_model(folder, "llama", initializer_range=0.1, **sizes)


def budgeted(ranges: int = 1, **section: Any) -> AskedRecipe:
    quantization = {"budget": "5.5bits", "candidates": ["W4A16", "W8A16", "exact"], **section}
    return parse_recipe(QUICK | {"quantization": quantization, "num_ranges": ranges})


def test_three_ranges_choose_and_write_what_one_does(
    make_model: Fixture, float32_products: None, tmp_path: Path
) -> None:
    folder = llama(make_model, tmp_path / "model")
    rules, configs, chosen = [], [], []
    for ranges in (1, 3):
        store = LocalStore(tmp_path / f"store{ranges}")
        manager = QuantizationManager(budgeted(ranges), str(folder), store, "cpu")
        result = manager.quantize()
        output = tmp_path / f"output{ranges}"
        manager.save(result, output)
        section = result.report.recipe["quantization"]
        assert section["budget"] is None
        assert store.exists(section["searched"])
        rules.append(section["schemes"])
        config = json.loads((output / "config.json").read_text())["quantization_config"]
        configs.append(config)
        search = result.report.search
        assert search is not None
        chosen.append(search.chosen)
        assert search.chosen.bits <= 5.5
        written = Checkpoint.open(FolderSource(output)).tensors.values()
        shapes = 16 * 7 * 4  # weight_shape of each linear
        assert search.chosen.bytes == pytest.approx(sum(i.bytes for i in written), abs=shapes)
        steps = [receipt.step for receipt in read_lineage(store, result.checkpoint)]
        assert steps.count("measure") == ranges
        assert steps.count("choose") == 1
        assert 'class="chart search"' in render_html(result.report)
    assert rules[0] == rules[1]
    assert configs[0] == configs[1]
    assert chosen[0] == chosen[1]
    assert len(configs[0]["config_groups"]) > 1
    # The first range stands on the same hidden states.
    one, three = (Checkpoint.open(FolderSource(tmp_path / f"output{ranges}")) for ranges in (1, 3))
    assert one.tensors.keys() == three.tensors.keys()
    for name in one.tensors:
        if ".layers.0." in name:
            assert one.read(name) == three.read(name), name


def test_another_budget_measures_nothing_again(make_model: Fixture, tmp_path: Path) -> None:
    folder, store = llama(make_model, tmp_path / "model"), LocalStore(tmp_path / "store")
    found = {}
    for budget in ("5bits", "7bits"):
        manager = QuantizationManager(budgeted(budget=budget), str(folder), store, "cpu")
        found[budget] = manager.quantize().report.search
    assert len(list(store.list("steps/measure/"))) == 1
    assert len(list(store.list("steps/choose/"))) == 2
    assert found["5bits"].chosen.kl > found["7bits"].chosen.kl
    assert found["5bits"].curve == found["7bits"].curve


def test_what_cannot_be_is_refused_at_plan_with_the_least_that_can(
    make_model: Fixture, tmp_path: Path
) -> None:
    folder, store = llama(make_model, tmp_path / "model"), LocalStore(tmp_path / "store")
    manager = QuantizationManager(budgeted(budget="3bits"), str(folder), store, "cpu")
    with pytest.raises(InvalidInputError, match=r"give 4\.\d+bits or more"):
        manager.quantize()
    assert not list(store.list("steps/calibrate/"))


def test_a_killed_measurement_goes_on_where_it_was(
    make_model: Fixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import quantlib.search.sensitivity as sensitivity

    folder = llama(make_model, tmp_path / "model")
    whole = QuantizationManager(budgeted(), str(folder), LocalStore(tmp_path / "whole"), "cpu")
    expected = whole.quantize().report.search
    real, seen = sensitivity.block_errors, []

    def dying(walk: Any, block: Any, *rest: Any) -> Any:
        if block.index == 2 and 2 not in seen:
            seen.append(2)
            raise KeyboardInterrupt
        seen.append(block.index)
        return real(walk, block, *rest)

    monkeypatch.setattr(sensitivity, "block_errors", dying)
    store = LocalStore(tmp_path / "store")
    manager = QuantizationManager(budgeted(), str(folder), store, "cpu")
    with pytest.raises(KeyboardInterrupt):
        manager.quantize()
    assert manager.quantize().report.search == expected
    assert seen[-2:] == [2, 3]
    assert seen.count(0) == 1


def test_all_experts_of_a_block_get_one_scheme(make_model: Fixture, tmp_path: Path) -> None:
    folder = make_model(
        tmp_path / "model",
        "qwen3_moe",
        initializer_range=0.1,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        hidden_size=64,
        num_hidden_layers=4,
    )
    asked = budgeted(budget="kl=0.05", format="compressed-tensors", method="minmax")
    store = LocalStore(tmp_path / "store")
    manager = QuantizationManager(asked, str(folder), store, "cpu")
    result = manager.quantize()
    search = result.report.search
    assert search is not None
    assert search.chosen.kl <= 0.05
    manager.save(result, tmp_path / "output")
    checkpoint = Checkpoint.open(FolderSource(tmp_path / "output"))
    for choice in search.choices:
        if choice.name.endswith("experts"):
            prefix = f"model.layers.{choice.block}.{choice.name}."
            own = [name for name in checkpoint.tensors if name.startswith(prefix)]
            kinds = {name.rpartition(".")[2] for name in own}
            packed = {"weight_packed", "weight_scale", "weight_shape"}
            assert kinds == ({"weight"} if choice.chosen == "exact" else packed)
