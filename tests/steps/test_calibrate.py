from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from quantlib.checkpoint.source import FolderSource, ReceiptSource
from quantlib.checkpoint.tensors import read_tensors
from quantlib.steps.calibrate import STATISTICS_NAME, calibrate, hidden_name
from quantlib.steps.fetch import fetch
from quantlib.steps.plan import plan
from quantlib.steps.texts import bring_texts, windows_without_store
from quantlib.store import LocalStore, Receipt


def calibrated(store: LocalStore, recipe: Any, folder: Path) -> Receipt:
    model = fetch(store, str(folder))
    planned = plan(store, recipe, model, bring_texts(store, recipe), 0)
    return calibrate(store, recipe, model, planned, "cpu")


@pytest.mark.usefixtures("float32_products")
def test_hidden_states_and_statistics_are_those_of_transformers(
    store: LocalStore, tiny_llama: Path, small_recipe: Callable[..., Any]
) -> None:
    recipe = small_recipe(num_ranges=2, outlier_suppression={"method": "smooth_quant"})
    receipt = calibrated(store, recipe, tiny_llama)
    assert set(receipt.files) == {hidden_name(0), hidden_name(2), STATISTICS_NAME}

    windows = windows_without_store(recipe.calibration, FolderSource(tiny_llama))
    tokens = torch.from_numpy(windows.tokens)
    assert receipt.facts["text"]["tokens"] == tokens.numel() == 512
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.no_grad():
        states = reference(tokens, output_hidden_states=True).hidden_states
        normalized = reference.model.layers[3].input_layernorm(states[3])
    source = ReceiptSource(store, receipt)
    assert read_tensors(source, hidden_name(0)) == {}  # the windows say it
    hidden = read_tensors(source, hidden_name(2))["hidden"]
    torch.testing.assert_close(hidden.float(), states[2], rtol=2**-6, atol=2**-6)
    statistics = read_tensors(source, STATISTICS_NAME)
    assert len(statistics) == 4 * 4 * 2
    torch.testing.assert_close(
        statistics["3.self_attn.q_proj.input_absmax"],
        normalized.flatten(0, 1).abs().amax(0),
        rtol=2**-6,
        atol=2**-6,
    )


def test_only_what_is_needed_is_computed(
    store: LocalStore, tiny_llama: Path, small_recipe: Callable[..., Any]
) -> None:
    data_free = small_recipe(quantization={"method": "minmax"})
    assert calibrated(store, data_free, tiny_llama).files == {}
    one_range = calibrated(store, small_recipe(), tiny_llama)
    assert set(one_range.files) == {hidden_name(0)}


def test_other_recipes_share_a_calibration(
    store: LocalStore, tiny_llama: Path, small_recipe: Callable[..., Any]
) -> None:
    four = calibrated(store, small_recipe(), tiny_llama)
    eight = calibrated(
        store, small_recipe(quantization={"weights": {"bits": 8, "group_size": 32}}), tiny_llama
    )
    other = calibrated(store, small_recipe(calibration={"seed": 1}), tiny_llama)
    assert four == eight
    assert four.key != other.key


def test_statistics_are_shared_by_all_that_they_serve(
    store: LocalStore, tiny_llama: Path, small_recipe: Callable[..., Any]
) -> None:
    def smoothed(bits: int = 8, **options: Any) -> Receipt:
        recipe = small_recipe(
            quantization={"weights": {"bits": bits, "group_size": 32}},
            outlier_suppression={"method": "smooth_quant", "options": options},
        )
        return calibrated(store, recipe, tiny_llama)

    half = smoothed(alpha=0.5)
    assert half == smoothed(alpha=[0.1, 0.2, 0.3, 0.4], pairs=["norms", "up_down"])
    assert half == smoothed(alpha=0.5, bits=4)
    auto = smoothed(alpha="auto")
    assert auto.key != half.key
    assert auto.key != smoothed(alpha="auto", bits=4).key
    assert auto.key != smoothed(alpha="auto", pairs=["norms", "up_down"]).key
    names = set(read_tensors(ReceiptSource(store, auto), STATISTICS_NAME))
    errors = {name for name in names if name.endswith("alpha_errors")}
    assert len(names - errors) == 4 * 4 * 2
    assert errors == {
        f"{block}.{group}.alpha_errors"
        for block in range(4)
        for group in ("self_attn.q_proj", "mlp.gate_proj")
    }
