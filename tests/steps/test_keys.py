"""What decides a step's key: all that decides its bytes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from quantlib.quantizers.gptq import GPTQQuantizer
from quantlib.recipe import Recipe
from quantlib.store import LocalStore

Steps = Callable[..., Any]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def keys(made: Any) -> dict[str, str]:
    return {
        "calibrate": made.calibration.key,
        "quantize": made.quantized[0].key,
        "merge": made.checkpoint.key,
    }


def test_another_default_of_an_option_is_other_work(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: Callable[..., Recipe],
    run_steps: Steps,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when the damping's default went from 0.01 to 0.1."""
    before = run_steps(store, small_recipe(), tiny_llama)
    field = GPTQQuantizer.options_type.model_fields["damping"]

    class Changed(GPTQQuantizer.options_type):  # type: ignore[name-defined, misc]
        damping: float = field.default * 10

    monkeypatch.setattr(GPTQQuantizer, "options_type", Changed)
    after = run_steps(store, small_recipe(), tiny_llama)
    assert after.calibration == before.calibration
    assert after.quantized[0].key != before.quantized[0].key
    assert after.quantized[0].parameters["quantization"]["options"]["damping"] == field.default * 10
    assert (
        after.checkpoint.facts["checkpoint_digest"] != before.checkpoint.facts["checkpoint_digest"]
    )


def test_a_default_that_is_written_out_is_the_same_work(
    store: LocalStore, tiny_llama: Path, small_recipe: Callable[..., Recipe], run_steps: Steps
) -> None:
    default = GPTQQuantizer.options_type().model_dump(mode="json")
    written = small_recipe(quantization={"options": default, "format": "gptq"})
    plain = run_steps(store, small_recipe(), tiny_llama)
    assert keys(plain) == keys(run_steps(store, written, tiny_llama))


def test_other_code_is_other_work(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: Callable[..., Recipe],
    run_steps: Steps,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = run_steps(store, small_recipe(), tiny_llama)
    monkeypatch.setattr("quantlib.store.transaction.code_versions", lambda: {"quantlib": "x+1"})
    after = run_steps(store, small_recipe(), tiny_llama)
    assert before.model.key != after.model.key
    assert not set(keys(before).values()) & set(keys(after).values())
    assert after.quantized[0].code == {"quantlib": "x+1"}
    assert after.checkpoint.facts == before.checkpoint.facts


@pytest.mark.usefixtures("float32_products")
def test_the_number_of_threads_is_in_the_key(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: Callable[..., Recipe],
    run_steps: Steps,
    threads: Callable[[int], None],
) -> None:
    made = []
    for count in (1, 2):
        threads(count)
        made.append(run_steps(store, small_recipe(), tiny_llama))
    assert [each.quantized[0].numerics["threads"] for each in made] == [1, 2]
    assert keys(made[0])["calibrate"] != keys(made[1])["calibrate"]
    threads(1)
    assert keys(run_steps(store, small_recipe(), tiny_llama)) == keys(made[0])


def test_the_dtype_of_products_is_in_the_key(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: Callable[..., Recipe],
    run_steps: Steps,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(
            "quantlib.runtime.devices.cpu_multiplies",
            lambda asked, dtype=dtype: asked in (dtype, torch.float32),
        )
        made.append(run_steps(store, small_recipe(), tiny_llama))
    products = [each.quantized[0].numerics["products"] for each in made]
    assert products == ["float32", "bfloat16"]
    assert not set(keys(made[0]).values()) & set(keys(made[1]).values())


def test_a_method_without_arithmetic_on_text_has_one_calibration_everywhere(
    store: LocalStore, tiny_llama: Path, small_recipe: Callable[..., Recipe], run_steps: Steps
) -> None:
    made = run_steps(store, small_recipe(quantization={"method": "minmax"}), tiny_llama)
    assert made.calibration.numerics == {}


def test_weights_lie_in_the_store_once(
    store: LocalStore, tiny_llama: Path, small_recipe: Callable[..., Recipe], run_steps: Steps
) -> None:
    made = run_steps(store, small_recipe(num_ranges=2), tiny_llama)
    shards = [
        record for name, record in made.checkpoint.files.items() if name.endswith(".safetensors")
    ]
    assert len(shards) == 3
    of_ranges = {receipt.path("blocks.safetensors") for receipt in made.quantized}
    assert of_ranges < {record.blob for record in shards}
    contents = [bytes(store.read(file.path)) for file in store.list("blobs")]
    assert len(contents) == len(set(contents))
