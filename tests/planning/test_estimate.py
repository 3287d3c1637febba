"""Estimates: how they follow from sizes, and what they choose."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from model_sizes import LLAMA_8B
from tomorrow import disguise

from quantlib.checkpoint.source import FolderSource
from quantlib.cli import cli
from quantlib.errors import InvalidInputError
from quantlib.models import open_model
from quantlib.models.fusion import vllm_version
from quantlib.planning import HARDWARE, RunEstimate, estimate_run, find_hardware, quantity
from quantlib.planning.needs import step_needs
from quantlib.planning.show import markdown
from quantlib.planning.tasks import items_of
from quantlib.recipe import Recipe
from quantlib.steps.contract import StepCall
from quantlib.steps.fetch import fetch
from quantlib.steps.plan import main, plan
from quantlib.steps.texts import bring_texts
from quantlib.store import LocalStore
from quantlib.task_section import TaskSection

GIB = 1 << 30
CPU = HARDWARE["cpu"]
H100 = HARDWARE["h100-80g"]


def estimate(recipe: Recipe, folder: Path, gpu: str = "h100-80g", parallel: int = 8) -> RunEstimate:
    return estimate_run(recipe, *open_model(FolderSource(folder)), find_hardware(gpu), parallel)


def test_more_ranges_end_sooner_until_there_is_no_worker_for_them(
    small_recipe: Callable[..., Recipe], tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantlib.planning.estimate.model_sizes", lambda *_, **__: LLAMA_8B)
    recipe = small_recipe(calibration={"num_samples": 512, "sequence_length": 2048})
    found = estimate(recipe, tiny_llama, parallel=4)
    spans = [option.makespan for option in found.options]
    assert [option.ranges for option in found.options] == list(range(1, 33))
    assert spans[3] < spans[2] < spans[1] < spans[0]
    assert spans[4] > spans[3]  # a second wave for the fifth
    enough = [option.ranges for option in found.options if option.makespan <= 1.05 * min(spans)]
    assert found.chosen.ranges == enough[0] > 1
    assert estimate(recipe, tiny_llama, parallel=1).chosen.ranges == 1


def test_trying_strengths_of_smoothing_takes_memory(
    small_recipe: Callable[..., Recipe], tiny_llama: Path
) -> None:
    plain, tried = (
        estimate(small_recipe(outlier_suppression={"options": options}), tiny_llama, "cpu")
        for options in ({}, {"alpha": "auto"})
    )
    more = tried.needs["calibrate"].memory.host - plain.needs["calibrate"].memory.host
    assert more == 4 * 2 * 128 * (8 * 64 + 6 * 512)  # gate and up


def test_starting_pods_is_not_free(small_recipe: Callable[..., Recipe], tiny_llama: Path) -> None:
    found = estimate(small_recipe(), tiny_llama)
    assert found.chosen.ranges == 1
    held = [option.device_seconds for option in found.options]
    assert held == sorted(held)


def test_what_is_not_calibrated_takes_no_tokens(
    small_recipe: Callable[..., Recipe], tiny_llama: Path
) -> None:
    rounding = small_recipe(quantization={"method": "minmax"})
    calibrated, rounded = (
        estimate(recipe, tiny_llama, "cpu") for recipe in (small_recipe(), rounding)
    )
    assert rounded.tokens == 0
    assert rounded.needs["quantize"].memory.host < calibrated.needs["quantize"].memory.host
    assert rounded.chosen.steps["calibrate"] < calibrated.options[1].steps["calibrate"]


@pytest.mark.parametrize(
    ("billions", "gpu", "serving", "gpus"),
    [
        (8, "h100-80g", 1, 1),
        (70, "h100-80g", 1, 2),
        (70, "l40s-48g", 1, 4),
        (70, "h100-80g", 4, 4),  # as many as will serve it
        (405, "h100-80g", 1, 8),  # does not fit; more than a node's are not asked for
    ],
)
def test_a_model_that_one_gpu_cannot_hold_is_validated_on_several(
    small_recipe: Callable[..., Recipe],
    make_model: Callable[..., Path],
    tmp_path: Path,
    billions: int,
    gpu: str,
    serving: int,
    gpus: int,
) -> None:
    folder = make_model(tmp_path, hidden_size=128, num_attention_heads=64, num_key_value_heads=8)
    _, adapter = open_model(FolderSource(folder))
    adapter.config["intermediate_size"] = 28672
    served = {"tensor_parallel_size": serving}
    recipe = small_recipe(serving=served, validation={"reference": "engine"})
    sizes = dataclasses.replace(LLAMA_8B, total_bytes=billions * 2 * 10**9)
    needs = step_needs(recipe, sizes, adapter, find_hardware(gpu), 2)["validate"]
    assert needs.gpus == gpus
    assert needs.cpus == 2 + 2 * gpus
    assert needs.memory.device == billions * 2 * 10**9 // gpus + 4 * GIB


@pytest.mark.parametrize(
    ("reference", "gpu", "streams", "gpus"),
    [
        ("auto", "h100-80g", True, 4),
        ("auto", "h200-141g", False, 8),
        ("streamed", "h200-141g", True, 2),
        ("streamed", "cpu", True, 0),
        ("auto", "cpu", False, 0),
    ],
)
def test_an_original_that_no_node_holds_is_streamed(
    small_recipe: Callable[..., Recipe],
    make_model: Callable[..., Path],
    tmp_path: Path,
    reference: str,
    gpu: str,
    streams: bool,
    gpus: int,
) -> None:
    folder = make_model(tmp_path, hidden_size=128, num_attention_heads=64, num_key_value_heads=8)
    _, adapter = open_model(FolderSource(folder))
    adapter.config["intermediate_size"] = 28672
    recipe = small_recipe(validation={"reference": reference})
    sizes = dataclasses.replace(
        LLAMA_8B, total_bytes=810 * 10**9, quantized_bytes=220 * 10**9, block_elements=405 * 10**9
    )
    needs = step_needs(recipe, sizes, adapter, find_hardware(gpu), 2)["validate"]
    assert (needs.streams, needs.gpus) == (streams, gpus)
    held = sizes.quantized_bytes if streams else sizes.total_bytes
    if gpus:
        assert needs.memory.device == held // gpus + 4 * GIB
    else:
        assert (needs.memory.host < sizes.total_bytes) is streams


def test_transformers_judges_on_one_gpu(
    small_recipe: Callable[..., Recipe], tiny_llama: Path
) -> None:
    served = {"tensor_parallel_size": 2}
    by_vllm, by_transformers = (
        estimate(small_recipe(serving=served, validation={"engine": engine}), tiny_llama)
        for engine in ("vllm", "transformers")
    )
    assert by_vllm.needs["validate"].gpus == 2
    assert by_transformers.needs["validate"].gpus == 1


def test_what_looks_at_no_activations_calibrates_on_no_gpu(
    small_recipe: Callable[..., Recipe], tiny_llama: Path
) -> None:
    calibrated = estimate(small_recipe(), tiny_llama).needs
    rounded = estimate(small_recipe(quantization={"method": "minmax"}), tiny_llama).needs
    assert {step: needs.gpus for step, needs in calibrated.items()} == {
        "calibrate": 1,
        "quantize": 1,
        "validate": 1,
        "tasks": 0,  # none are asked for
    }
    assert [rounded[step].gpus for step in rounded] == [0, 1, 1, 0]
    assert rounded["calibrate"].cpus < calibrated["calibrate"].cpus


def test_unknown_hardware() -> None:
    with pytest.raises(InvalidInputError, match="known: b200-180g, h200-141g"):
        find_hardware("b9000")


def test_the_command_shows_what_the_function_says(
    small_recipe: Callable[..., Recipe], tiny_llama: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(small_recipe().canonical_json())
    arguments = ["plan", str(tiny_llama), "--recipe", str(recipe), "--gpu", "l4-24g"]
    runner = CliRunner(env={"COLUMNS": "120"})
    shown = runner.invoke(cli, [*arguments, "--ranges", "3"])
    assert shown.exit_code == 0, shown.exception
    assert "3 ranges on l4-24g (as asked), 8 at a time" in shown.output
    assert "store:" in shown.output
    printed = json.loads(runner.invoke(cli, [*arguments, "--json"]).output)
    expected = estimate(small_recipe(), tiny_llama, "l4-24g")
    assert printed["chosen"]["ranges"] == expected.chosen.ranges
    assert printed["group_size"] == {"size": 32, "reason": None}
    automatic = runner.invoke(cli, [*arguments, "--group-size", "auto", "--json"]).output
    chosen = json.loads(automatic)["group_size"]
    assert chosen["size"] == 64
    assert chosen["reason"].startswith("group size 64: the largest of 128, 64, 32 that divides")
    assert printed["needs"]["quantize"]["memory"]["host"] == expected.needs["quantize"].memory.host
    asked = json.loads(runner.invoke(cli, [*arguments, "--ranges", "3", "--json"]).output)
    assert asked["chosen"] == asked["options"][2]
    assert asked["store_bytes"] > printed["store_bytes"]  # of the boundaries between ranges
    most = runner.invoke(cli, [*arguments, "--ranges", "9"]).output
    assert "4 ranges on l4-24g (not 9: one for each block to quantize is the most)" in most
    assert runner.invoke(cli, [*arguments, "--ranges", "none"]).exit_code == 2


def test_the_command_says_that_vllm_does_not_serve_it(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    short = "validation: {sequence_length: 64}"
    recipe.write_text(f"quantization: {{method: minmax, weights: {{group_size: 32}}}}\n{short}\n")
    unknown = disguise(tiny_llama, tmp_path / "unknown")
    lines = []
    for model in (tiny_llama, unknown):
        done = CliRunner().invoke(cli, ["plan", str(model), "--recipe", str(recipe)])
        assert done.exit_code == 0, done.output
        lines.append(f"vLLM {vllm_version()} is not known to serve TomorrowForC" in done.output)
    assert lines == [False, True]


def test_tasks_take_time_and_gpus_where_they_are_asked_for(
    small_recipe: Callable[..., Recipe], tiny_llama: Path
) -> None:
    none = estimate(small_recipe(), tiny_llama)
    few = estimate(small_recipe(tasks={"run": ["gsm8k"]}), tiny_llama)
    more = estimate(small_recipe(tasks={"run": ["gsm8k"], "repeats": 3}), tiny_llama)
    assert none.chosen.steps["tasks"] == 0
    assert few.needs["tasks"] == few.needs["validate"]
    # vLLM starts twice; the original is asked twice as often as the checkpoint.
    assert few.chosen.steps["tasks"] > 2 * 120
    assert more.chosen.steps["tasks"] > few.chosen.steps["tasks"]
    assert few.chosen.makespan > none.chosen.makespan
    assert few.chosen.device_seconds > none.chosen.device_seconds + 2 * 120


def test_as_many_items_as_there_are_or_are_asked_for() -> None:
    public = {"name": "gsm8k", "dataset": "hf://datasets/openai/gsm8k"}
    found = [
        items_of(TaskSection.model_validate(each))
        for each in ({"name": "gsm8k"}, {"name": "gsm8k", "samples": 5}, public)
    ]
    assert found == [24, 5, 1319]


def test_the_step_goes_by_the_same_numbers(
    small_recipe: Callable[..., Recipe], tiny_llama: Path, tmp_path: Path
) -> None:
    store = LocalStore(tmp_path / "store")
    model = fetch(store, str(tiny_llama))
    (tmp_path / "model.json").write_bytes(model.to_json())
    (tmp_path / "texts.json").write_bytes(bring_texts(store, small_recipe()).to_json())
    recipe = small_recipe(calibration={"num_samples": 100_000})
    values: dict[str, Any] = {
        "recipe": recipe.canonical_json(),
        "num_ranges": -1.0,
        "gpu": "cpu",
        "parallel": 2.0,
        "node_gpus": 8.0,
        "scratch": "400Gi",
        "searches": "no",
        "store": store.address,
    }
    steps, needs = ("calibrate", "quantize", "validate", "tasks"), ("memory", "cpus", "gpus")
    outputs = ("settled_recipe", "ranges", *(f"{step}_{need}" for step in steps for need in needs))
    call = StepCall.parse(
        json.dumps(
            {
                "inputs": {
                    "parameterValues": values,
                    "artifacts": {
                        name: {"artifacts": [{"uri": f"file://{tmp_path}/{name}.json"}]}
                        for name in ("model", "texts")
                    },
                },
                "outputs": {
                    "parameters": {n: {"outputFile": str(tmp_path / n)} for n in outputs},
                    "artifacts": {
                        name: {"artifacts": [{"uri": f"file://{tmp_path}/{name}"}]}
                        for name in ("plan", "plan_summary")
                    },
                    "outputFile": str(tmp_path / "executor.json"),
                },
            }
        )
    )
    with pytest.raises(InvalidInputError, match="give more text, or at most"):
        main(call)  # what the recipe lacks is found all the same
    served = small_recipe(serving={"tensor_parallel_size": 2}, calibration={"num_samples": 10**8})
    call.parameters = values | {
        "recipe": served.canonical_json(),
        "gpu": "l4-24g",
        "node_gpus": 1.0,
    }
    with pytest.raises(InvalidInputError) as refused:
        main(call)
    wheres = [problem.where for problem in refused.value.problems]
    assert wheres[-3:-1] == ["serving.tensor_parallel_size", "calibrate on l4-24g"]
    assert not (tmp_path / "ranges").exists()
    with pytest.raises(InvalidInputError, match="scratch: is no size: 'much'"):
        call.parameters = values | {"scratch": "much"}
        main(call)
    for searches, budget, remedy in (("no", "5bits", "run search"), ("yes", None, "run quantize")):
        section = {"weights": {"group_size": 32}, "budget": budget}
        asked = small_recipe(quantization=section).canonical_json()
        call.parameters = values | {"searches": searches, "recipe": asked}
        with pytest.raises(InvalidInputError, match=f"quantization.budget.*{remedy}"):
            main(call)
    values |= {"recipe": small_recipe().canonical_json(), "num_ranges": 2.0}
    call.parameters = values
    main(call)
    assert json.loads((tmp_path / "ranges").read_text()) == ["0:2", "2:4"]
    found = estimate_run(
        small_recipe(), *open_model(FolderSource(tiny_llama)), CPU, 2, product_bytes=4, ranges=2
    )
    assert (tmp_path / "quantize_memory").read_text() == quantity(
        found.needs["quantize"].memory.host
    )
    assert [(tmp_path / f"{step}_gpus").read_text() for step in steps] == ["0"] * 4
    assert (tmp_path / "quantize_cpus").read_text() == str(found.needs["quantize"].cpus)
    assert (tmp_path / "plan_summary").read_text() == markdown(found)
    assert (tmp_path / "settled_recipe").read_text() == small_recipe().canonical_json()
    auto = small_recipe(quantization={"weights": {"bits": 4, "group_size": "auto"}})
    call.parameters = values | {"recipe": auto.canonical_json()}
    main(call)
    handed_on = json.loads((tmp_path / "settled_recipe").read_text())
    assert handed_on["quantization"]["weights"]["group_size"] == 64
    said = "- group size 64: the largest of 128, 64, 32 that divides every linear's input; "
    assert said in (tmp_path / "plan_summary").read_text()


def test_automatic_ranges_are_in_the_plans_key(
    small_recipe: Callable[..., Recipe], tiny_llama: Path, tmp_path: Path
) -> None:
    store = LocalStore(tmp_path / "store")
    model = fetch(store, str(tiny_llama))
    texts = bring_texts(store, small_recipe())
    automatic = plan(store, small_recipe(), model, texts, -1, H100, 8)
    assert automatic == plan(store, small_recipe(), model, texts, 1)
