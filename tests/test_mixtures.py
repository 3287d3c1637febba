"""Mixtures of experts through all steps: checkpoint, records, refusals."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from documents import ROOT
from transformers import AutoModelForCausalLM

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource, ReceiptSource
from quantlib.checkpoint.tensors import read_tensor
from quantlib.checks.linears import checkpoint_scheme, exact_linears
from quantlib.checks.machine import required_bytes
from quantlib.checks.model import cpu_problem, model_problems
from quantlib.evaluation.choose_engine import FALLBACK_VARIABLE
from quantlib.evaluation.transformers_engine import load_model
from quantlib.formats.dequantize import dequantized_state
from quantlib.models import open_model
from quantlib.numbers.inputs import round_input
from quantlib.report.build import build_report
from quantlib.schemes import SCHEMES
from quantlib.steps.plan import plan_ranges
from quantlib.steps.validate import read_evaluation, validate
from quantlib.store import LocalStore

Fixture = Callable[..., Any]
CT = {"format": "compressed-tensors"}
W8 = {"weights": {"bits": 8, "group_size": -1}}
MIXTRAL = {"num_local_experts": 4}
BLOCKS_OF_256 = MIXTRAL | {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
}
QWEN = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "mlp_only_layers": [1],
    "norm_topk_prob": True,
}


@pytest.fixture(scope="module")
def mixtral(make_model: Fixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("m") / "mixtral", "mixtral", **MIXTRAL)


@pytest.fixture(scope="module")
def qwen(make_model: Fixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(
        tmp_path_factory.mktemp("m") / "qwen", "qwen3_moe", stacked_experts=True, **QWEN
    )


def records(made: Any) -> list[dict[str, Any]]:
    return json.loads(made.store.read(made.checkpoint.path("linears.json")))


def problems(folder: Path, recipe: Any) -> str:
    checkpoint, adapter = open_model(FolderSource(folder))
    return "\n".join(str(problem) for problem in model_problems(recipe, checkpoint, adapter))


@torch.no_grad()
@pytest.mark.parametrize("quantization", [{}, CT], ids=["gptq", "compressed-tensors"])
def test_mixtral(
    quantization: dict[str, Any],
    mixtral: Path,
    store: LocalStore,
    small_recipe: Fixture,
    run_steps: Fixture,
    tmp_path: Path,
) -> None:
    recipe = small_recipe(
        num_ranges=2, quantization=quantization, calibration={"min_expert_tokens": 220}
    )
    made = run_steps(store, recipe, mixtral)
    folder = made.export(tmp_path / "out")
    written, original = (Checkpoint.open(FolderSource(path)) for path in (folder, mixtral))
    part = "qweight" if not quantization else "weight_packed"
    assert f"model.layers.3.block_sparse_moe.experts.3.w2.{part}" in written.tensors
    for block in range(4):
        router = f"model.layers.{block}.block_sparse_moe.gate.weight"
        assert written.read(router) == original.read(router)
    of_experts = [record for record in records(made) if record["expert"] is not None]
    assert len(of_experts) == 4 * 4 * 3
    for block in range(4):
        inputs = [r for r in of_experts if r["block"] == block and r["linear"].endswith("w1")]
        assert sum(record["expert_tokens"] for record in inputs) == 2 * 8 * 64
    few = {r["linear"] for r in of_experts if r["calibrated_on"] == "all"}
    assert 0 < len(few) < len({r["linear"] for r in of_experts})
    assert all(
        (record["calibrated_on"] == "all") == (record["expert_tokens"] < 220)
        for record in of_experts
    )
    # transformers computes with what the codes stand for.
    state = dict(dequantized_state(written))
    experts = load_model(folder, torch.float32).model.layers[2].mlp.experts
    prefix = "model.layers.2.block_sparse_moe.experts.1."
    gate_up = torch.cat([state[f"{prefix}w1.weight"], state[f"{prefix}w3.weight"]]).float()
    assert torch.equal(experts.gate_up_proj[1], gate_up)
    weight = read_tensor(original, f"{prefix}w1.weight").float()
    assert 0 < (state[f"{prefix}w1.weight"].float() - weight).norm() / weight.norm() < 0.2


@torch.no_grad()
def test_qwen_from_stacked_experts(
    qwen: Path, store: LocalStore, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    made = run_steps(store, small_recipe(quantization=CT, num_ranges=3), qwen)
    folder = made.export(tmp_path / "out")
    written = Checkpoint.open(FolderSource(folder))
    assert "model.layers.0.mlp.experts.7.up_proj.weight_packed" in written.tensors
    assert "model.layers.1.mlp.up_proj.weight_packed" in written.tensors
    assert not [name for name in written.tensors if "gate_up" in name]
    original, _ = open_model(FolderSource(qwen))
    for block in (0, 2, 3):
        name = f"model.layers.{block}.mlp.gate.weight"
        assert written.read(name) == original.read(name)
    counted = {record["block"] for record in records(made) if record["expert_tokens"] is not None}
    assert counted == {0, 2, 3}
    tokens = torch.arange(40)[None]
    logits = load_model(folder, torch.float32)(tokens).logits
    exact = AutoModelForCausalLM.from_pretrained(qwen, dtype=torch.float32)(tokens).logits
    assert torch.isfinite(logits).all()
    assert 0 < (logits - exact).norm() / exact.norm() < 1


def test_both_layouts_give_the_same_codes(
    qwen: Path, make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    single = make_model(tmp_path / "single", "qwen3_moe", **QWEN)
    states = []
    for name, source in (("a", qwen), ("b", single)):
        made = run_steps(LocalStore(tmp_path / name), small_recipe(quantization=CT), source)
        checkpoint = Checkpoint.open(FolderSource(made.export(tmp_path / f"{name}-out")))
        states.append({key: checkpoint.read(key) for key in checkpoint.tensors})
    assert states[0] == states[1]


SERVED_WITH_EXPERTS = [name for name in SCHEMES if name not in ("FP8_STATIC", "W4A8")]


@pytest.mark.parametrize("name", SERVED_WITH_EXPERTS)
def test_experts_are_what_compressed_tensors_unpacks(
    name: str, make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    """By the package's own decompression, in every scheme."""
    source = make_model(tmp_path / "source", "mixtral", **BLOCKS_OF_256)
    store, rule = LocalStore(tmp_path / "store"), {"scheme": name}
    if "group_size" not in SCHEMES[name]["weights"]:
        rule["group_size"] = 32
    section = {"method": "minmax", "format": "compressed-tensors", "schemes": [rule]}
    made = run_steps(store, small_recipe(quantization=section), source)
    checkpoint = Checkpoint.open(ReceiptSource(store, made.checkpoint))
    config = QuantizationConfig.model_validate(checkpoint.config["quantization_config"])
    compressor = BaseCompressor.get_value_from_registry(config.format)
    state = dict(dequantized_state(checkpoint))
    for expert, part in itertools.product(range(4), ("w1", "w2", "w3")):
        module = f"model.layers.1.block_sparse_moe.experts.{expert}.{part}"
        parts = {
            key.removeprefix(f"{module}."): read_tensor(checkpoint, key)
            for key in checkpoint.tensors
            if key.startswith(f"{module}.")
        }
        if name == "NVFP4":  # of experts that no token was routed to as well
            assert parts.pop("input_global_scale").isfinite().all()
        expected = compressor.decompress(parts, config.config_groups["group_0"])["weight"]
        torch.testing.assert_close(
            state[f"{module}.weight"].float(), expected.float(), rtol=2**-7, atol=1e-6
        )


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ({"scheme": "FP8_STATIC"}, "experts with fp8 activations per token only"),
        ({"scheme": "W4A8", "group_size": 32}, "no packed experts of four bits with int8"),
    ],
)
def test_what_no_experts_are_served_in_is_refused(
    mixtral: Path, small_recipe: Fixture, scheme: dict[str, Any], reason: str
) -> None:
    section = {"method": "minmax", "format": "compressed-tensors", "schemes": [scheme]}
    assert reason in problems(mixtral, small_recipe(quantization=section))


def test_scheme_names_routers_and_exact_experts(
    mixtral: Path, qwen: Path, small_recipe: Fixture
) -> None:
    _, adapter = open_model(FolderSource(mixtral))
    section = small_recipe(quantization={"ignore": ["re:layers.2.*experts"]}).quantization
    scheme = checkpoint_scheme(section, adapter)
    moe = [f"model.layers.{block}.block_sparse_moe" for block in range(4)]
    assert scheme.exact == ("lm_head", *(f"{name}.gate" for name in moe))
    assert scheme.exact_modules == (f"{moe[2]}.experts",)
    _, adapter = open_model(FolderSource(qwen))
    section = small_recipe(quantization={"layers": [0]}).quantization
    scheme = checkpoint_scheme(section, adapter)
    assert {name for name in scheme.exact if name.endswith(".gate")} == {
        f"model.layers.{block}.mlp.gate" for block in (0, 2, 3)
    }
    assert "model.layers.1.mlp.gate_up_proj" in scheme.exact_fused
    assert scheme.exact_modules == ("model.layers.2.mlp.experts", "model.layers.3.mlp.experts")


def test_exact_experts_go_by_the_names_of_vllm(tmp_path: Path, small_recipe: Fixture) -> None:
    section = small_recipe(quantization={"ignore": ["re:experts"]}).quantization
    _, adapter = open_model(FolderSource(zoo.make("nemotron_h", tmp_path / "nemotron")))
    (first, *_) = checkpoint_scheme(section, adapter).exact_modules
    assert first.startswith("backbone.layers.") and first.endswith(".mixer.experts")
    asked_for = first.replace("backbone", "model") + ".0.up_proj"
    assert asked_for in checkpoint_scheme(section, adapter).exact


def test_experts_that_vllm_reads_in_other_pieces_stay_exact(
    tmp_path: Path, small_recipe: Fixture
) -> None:
    """It would leave out tensors whose names it does not know, without an error."""
    _, adapter = open_model(FolderSource(zoo.make("gpt_oss", tmp_path / "model")))
    assert not any("experts" in linear for linear in adapter.linears(0))
    scheme = checkpoint_scheme(small_recipe().quantization, adapter)
    assert "model.layers.0.mlp.experts" in scheme.exact_modules
    assert r"re:model\.layers\.0\.mlp\.experts\.0\.gate_proj$" in scheme.exact


@pytest.mark.parametrize("name", ["gptq", "awq", "compressed-tensors"])
def test_formats_know_again_what_is_exact(name: str, mixtral: Path, small_recipe: Fixture) -> None:
    from quantlib.formats import format_registry

    _, adapter = open_model(FolderSource(mixtral))
    section = small_recipe(
        quantization={"format": name, "ignore": ["re:layers.2.*experts", "o_proj"]}
    ).quantization
    made_by = format_registry.get_format(name)
    config = made_by.quantization_config(checkpoint_scheme(section, adapter))
    scheme_of = made_by.read_schemes(config)
    exact = exact_linears(section, adapter)
    for block in range(4):
        for linear in adapter.linears(block):
            found = scheme_of(adapter.linear_name(block, linear))
            assert found == (None if linear in exact[block] else section.rest), linear
        assert "block_sparse_moe.gate" in adapter.kept_exact(block)
        for linear in adapter.kept_exact(block):
            assert scheme_of(adapter.linear_name(block, linear)) is None


def test_what_cannot_be_served_is_refused(mixtral: Path, qwen: Path, small_recipe: Fixture) -> None:
    def of(folder: Path, **quantization: Any) -> str:
        return problems(folder, small_recipe(quantization=quantization))

    assert of(mixtral) == ""
    assert of(mixtral, ignore=["gate"]) == ""
    split = of(mixtral, ignore=["re:experts.3"])
    assert "block_sparse_moe.experts.*.w1" in split
    assert "in block 0, which vLLM fuses into model.layers.0.block_sparse_moe.experts" in split
    assert "which vLLM fuses" in of(mixtral, ignore=["w2"])
    static = of(mixtral, **W8 | {"activations": "int8-static"})
    assert "experts with int8 activations per token only" in static
    assert of(mixtral, **W8 | {"activations": "int8-static", "ignore": ["re:experts"]}) == ""
    eight = {"bits": 8, "group_size": -1, "symmetric": False}
    assert "experts with asymmetric 8-bit weights" in of(mixtral, **CT, weights=eight)
    assert "known: " in (unknown := of(mixtral, ignore=["up_proj"]))
    assert unknown.count("w1") == 1
    assert "gptq: vLLM takes gate and up of blocks without experts (block 1)" in of(qwen)
    assert of(qwen, **CT) == ""
    assert of(qwen, ignore=["re:1.mlp.(gate|up)_proj"]) == ""
    exact = of(mixtral, ignore=["re:experts"])
    assert "gptq: vLLM takes exact experts (block 0) for quantized ones" in exact
    assert of(mixtral, **CT, ignore=["re:experts"]) == ""
    ragged = of(mixtral, weights={"bits": 4, "group_size": 128})
    assert ragged.count("block_sparse_moe.experts.*.w1 (64 columns)") == 1


def test_no_cpu_serves_quantized_experts(mixtral: Path, small_recipe: Fixture) -> None:
    _, adapter = open_model(FolderSource(mixtral))
    problem = cpu_problem(small_recipe().quantization, adapter)
    assert problem is not None and "AMX" in problem
    assert problem in (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    exact = small_recipe(quantization={"ignore": ["re:experts"]}).quantization
    assert cpu_problem(exact, adapter) is None


def test_ranges_are_balanced_by_the_parameters_of_experts(
    qwen: Path, small_recipe: Fixture
) -> None:
    _, adapter = open_model(FolderSource(qwen))
    recipe = small_recipe(quantization=CT | {"ignore": ["re:layers.[23].*experts"]})
    # Of all blocks only the first has experts to quantize; the second has none.
    assert plan_ranges(recipe, adapter, 2) == [(0, 1), (1, 4)]


def test_both_layouts_need_the_same_room(
    qwen: Path, make_model: Fixture, small_recipe: Fixture, tmp_path: Path
) -> None:
    single = make_model(tmp_path / "single", "qwen3_moe", **QWEN)
    needed = {
        required_bytes(small_recipe(quantization=CT), *open_model(FolderSource(folder)))
        for folder in (qwen, single)
    }
    assert len(needed) == 1


def test_smoothing_of_experts_leaves_the_function(
    mixtral: Path, store: LocalStore, small_recipe: Fixture, run_steps: Fixture
) -> None:
    recipe = small_recipe(
        quantization=W8 | {"activations": "int8", "method": "minmax"},
        outlier_suppression={"options": {"pairs": ["norms", "up_down"]}},
    )
    made = run_steps(store, recipe, mixtral)
    state = dict(dequantized_state(Checkpoint.open(ReceiptSource(store, made.checkpoint))))
    original = Checkpoint.open(FolderSource(mixtral))
    prefix = "model.layers.1.block_sparse_moe.experts.2."
    up, down = (
        (state[f"{prefix}{name}.weight"].float(), read_tensor(original, f"{prefix}{name}.weight"))
        for name in ("w3", "w2")
    )
    rows = (up[0].norm(dim=1) / up[1].float().norm(dim=1))[None]
    columns = (down[0].norm(dim=0) / down[1].float().norm(dim=0))[None]
    assert rows.std() > 0.2 * rows.mean()
    torch.testing.assert_close(rows * columns, torch.ones_like(rows), rtol=0.02, atol=0)


@torch.no_grad()
def test_transformers_rounds_both_inputs_of_experts(
    mixtral: Path, store: LocalStore, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    made = run_steps(store, small_recipe(quantization=W8 | {"activations": "int8"}), mixtral)
    model = load_model(made.export(tmp_path / "out"), torch.float32)
    experts = model.model.layers[1].mlp.experts
    x = torch.randn(5, model.config.hidden_size)
    chosen = torch.tensor([[0, 1]] * 5)
    shares = torch.rand(5, 2)
    expected = torch.zeros_like(x)
    for expert in range(2):
        gate, up = (round_input(x, "int8") @ experts.gate_up_proj[expert].t()).chunk(2, -1)
        inner = round_input(torch.nn.functional.silu(gate) * up, "int8")
        expected += shares[:, expert, None] * (inner @ experts.down_proj[expert].t())
    torch.testing.assert_close(experts(x, chosen, shares), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_gate_refuses_what_saw_too_few_tokens(
    mixtral: Path,
    store: LocalStore,
    small_recipe: Fixture,
    run_steps: Fixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(FALLBACK_VARIABLE, raising=False)
    lenient = {"max_perplexity_increase": 9, "max_kl_mean": 9, "min_top1_agreement": 0.01}
    settings = {"engine": "transformers", "max_new_tokens": 4, "prompts": ["A prompt"]}

    def recipe_with(engine: str, share: float) -> Any:
        thresholds = lenient | {"max_undercalibrated_experts": share}
        return small_recipe(
            calibration={"min_expert_tokens": 220},
            validation=settings | {"engine": engine, "thresholds": thresholds},
        )

    made = run_steps(store, recipe_with("transformers", 1), mixtral)
    passed = validate(store, made.recipe, made.model, made.plan, made.checkpoint, "cpu")
    assert passed.facts["verdict"] == "passed"
    strict = recipe_with("transformers", 0)
    failed = validate(store, strict, made.model, made.plan, made.checkpoint, "cpu")
    assert failed.facts["verdict"] == "regression"
    assert "too few calibration tokens came to" in failed.facts["reason"]
    report = build_report(store, strict, made.checkpoint, read_evaluation(store, failed), failed)
    assert report.verdict.outcome == "regression"
    few = {(r.block, r.expert) for r in report.linears if r.calibrated_on == "all"}
    (check,) = (c for c in report.evaluation.gate.checks if c.name == "undercalibrated_experts")
    assert check.value == len(few) / (4 * 4)
