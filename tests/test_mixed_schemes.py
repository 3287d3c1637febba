"""Linears of one model in several schemes: what is written, what reads it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from problems import input_problems
from serving import assert_served_as_meant, reference_logprobs, served_logprobs
from transformers import AutoConfig, AutoModelForCausalLM

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource, ReceiptSource
from quantlib.checkpoint.tensors import read_tensor
from quantlib.checks.group_size import settle
from quantlib.checks.linears import checkpoint_scheme, linear_schemes
from quantlib.checks.recipe import parse_recipe
from quantlib.evaluation.dry_load import dry_load
from quantlib.formats import format_registry
from quantlib.formats.dequantize import dequantized_state
from quantlib.models import open_model
from quantlib.recipe import Recipe
from quantlib.steps.fetch import fetch
from quantlib.store import LocalStore

Fixture = Callable[..., Any]

SIZES = {
    "initializer_range": 0.1,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, **SIZES}

MIXTURES: dict[str, dict[str, Any]] = {
    "attention in FP8": {
        "weights": {"group_size": 32},
        "schemes": [{"scheme": "FP8_DYNAMIC", "linears": ["attention"]}],
    },
    "by name and block": {
        "weights": {"type": "float", "bits": 8, "group_size": -1},
        "activations": "fp8",
        "schemes": [
            {"scheme": "exact", "linears": ["attention"], "blocks": [0]},
            {
                "scheme": "W4A16",
                "linears": ["re:mlp.down_proj$"],
                "blocks": [1, -1],
                "group_size": 32,
            },
            {"scheme": "W8A8", "linears": ["o_proj"]},
            {"scheme": "W4A16_ASYM", "linears": ["mlp"], "blocks": [2], "group_size": 64},
        ],
    },
    "of two sizes of groups": {
        "format": "gptq",
        "weights": {"group_size": 128},
        "schemes": [{"scheme": "W4A16", "linears": ["mlp"], "group_size": 32}],
    },
}
"""What vLLM has kernels for on CPUs."""

PARTS = ("weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_shape")


def llama_with(make_model: Fixture, folder: Path, **changes: Any) -> Path:
    return make_model(folder, "llama", num_key_value_heads=2, **SIZES | changes)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
def test_vllm_computes_what_the_quantizer_meant(
    make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    source, store = llama_with(make_model, tmp_path / "source"), LocalStore(tmp_path / "store")
    folders = [
        run_steps(store, small_recipe(quantization=each), source).export(tmp_path / str(number))
        for number, each in enumerate(MIXTURES.values())
    ]
    for folder, found in zip(folders, served_logprobs(folders, tmp_path), strict=True):
        # FP8 activations are rounded a little otherwise; another scheme would give more than 0.1.
        assert_served_as_meant(found, reference_logprobs(folder), 0.03)


def written_by(
    make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, folder: Path, name: str
) -> tuple[Path, Recipe, Any]:
    """A checkpoint of one of the mixtures, its recipe, and the family of the model."""
    source = llama_with(make_model, folder / "source")
    recipe = small_recipe(quantization=MIXTURES[name])
    made = run_steps(LocalStore(folder / "store"), recipe, source)
    return made.export(folder / "made"), recipe, open_model(FolderSource(source))[1]


def test_compressed_tensors_gives_each_linear_its_scheme(
    make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    """By its own matching of names, on transformers' modules; and its decompression."""
    name = "by name and block"
    folder, recipe, adapter = written_by(make_model, small_recipe, run_steps, tmp_path, name)
    checkpoint = Checkpoint.open(FolderSource(folder))
    given = checkpoint.config["quantization_config"]
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parsed = QuantizationConfig.model_validate(given)
    apply_quantization_config(model, parsed)
    plain = dict(dequantized_state(checkpoint))
    groups = {group.weights.model_dump_json(): group for group in parsed.config_groups.values()}
    found = 0
    for block, schemes in enumerate(linear_schemes(recipe.quantization, adapter)):
        for linear in adapter.linears(block):
            full = adapter.linear_name(block, linear)
            theirs = getattr(model.get_submodule(full), "quantization_scheme", None)
            if linear not in schemes:
                assert theirs is None, full
                continue
            found += 1
            weights = schemes[linear].weights
            assert theirs.weights.num_bits == weights.bits, full
            assert theirs.weights.type == weights.type, full
            assert theirs.weights.symmetric == weights.symmetric, full
            assert (theirs.input_activations is None) == (schemes[linear].activations == "none")
            group = groups[theirs.weights.model_dump_json()]
            compressor = BaseCompressor.get_value_from_registry(group.format)
            stored = {
                part: read_tensor(checkpoint, f"{full}.{part}")
                for part in PARTS
                if f"{full}.{part}" in checkpoint.tensors
            }
            restored = compressor.decompress(stored, theirs)["weight"]
            torch.testing.assert_close(
                restored.float(), plain[f"{full}.weight"].float(), rtol=2**-7, atol=0
            )
    assert found == 4 * 7 - 4


@pytest.mark.parametrize("name", MIXTURES)
def test_what_is_written_is_read_again(
    name: str, make_model: Fixture, small_recipe: Fixture, tmp_path: Path
) -> None:
    source = llama_with(make_model, tmp_path / "source")
    adapter = open_model(FolderSource(source))[1]
    section = small_recipe(quantization=MIXTURES[name]).quantization
    scheme = checkpoint_scheme(section, adapter)
    made_by = format_registry.get_format(scheme.format)
    scheme_of = made_by.read_schemes(json.loads(json.dumps(made_by.quantization_config(scheme))))
    seen = set()
    for block, schemes in enumerate(linear_schemes(section, adapter)):
        for linear in adapter.linears(block):
            assert scheme_of(adapter.linear_name(block, linear)) == schemes.get(linear), linear
            seen.add(schemes.get(linear))
    assert len(seen) == len(section.stated_schemes()) + ("exact" in str(section.schemes))


def test_three_ranges_write_what_one_does(
    make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    source, store = llama_with(make_model, tmp_path / "source"), LocalStore(tmp_path / "store")
    layouts = []
    for ranges in (1, 3):
        recipe = small_recipe(quantization=MIXTURES["by name and block"], num_ranges=ranges)
        folder = run_steps(store, recipe, source).export(tmp_path / str(ranges))
        checkpoint = Checkpoint.open(FolderSource(folder))
        tensors = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
        layouts.append((checkpoint.config["quantization_config"], tensors))
    assert layouts[0] == layouts[1]


def test_experts_go_by_the_first_ones_name_and_by_a_pattern(
    make_model: Fixture, small_recipe: Fixture, tmp_path: Path
) -> None:
    source = make_model(tmp_path / "source", "qwen3_moe", num_key_value_heads=2, **MOE)
    adapter = open_model(FolderSource(source))[1]
    schemes = [{"scheme": "FP8_DYNAMIC", "linears": ["attention"]}]
    section = small_recipe(quantization={"schemes": schemes}).quantization
    scheme = checkpoint_scheme(section, adapter)
    assert scheme.schemes[0].scheme.name == "W4A16", "experts are most of the model"
    swapped = [{"scheme": "W8A16", "linears": ["experts"], "blocks": [0], "group_size": 32}]
    section = small_recipe(quantization={"schemes": swapped}).quantization
    (_, other) = checkpoint_scheme(section, adapter).schemes
    prefix = "model.layers.0.mlp.experts"
    assert f"{prefix}.0.gate_proj" in other.names
    assert len(other.names) < 12, "not all experts by name"
    made_by = format_registry.get_format("compressed-tensors")
    config = made_by.quantization_config(checkpoint_scheme(section, adapter))
    scheme_of = made_by.read_schemes(config)
    for expert, bits in ((0, 8), (3, 8)):
        found = scheme_of(f"{prefix}.{expert}.down_proj")
        assert found is not None and found.weights.bits == bits
    found = scheme_of("model.layers.1.mlp.experts.3.down_proj")
    assert found is not None and found.weights.bits == 4


def test_sizes_that_rules_leave_open_are_settled_by_their_linears(
    make_model: Fixture, tmp_path: Path
) -> None:
    source = llama_with(make_model, tmp_path / "source", hidden_size=192, head_dim=32)
    adapter = open_model(FolderSource(source))[1]
    rule = {"scheme": "W8A16", "linears": ["down_proj"]}
    settled = settle(parse_recipe({"quantization": {"schemes": [rule]}}), adapter)
    section = settled.recipe.quantization
    assert section.weights.group_size == 64
    assert section.schemes[0].group_size == 128
    assert "group size 64: the largest of 128, 64, 32" in settled.said
    assert "group size 128 of W8A16 (rule 1)" in settled.said


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (
            {"schemes": [{"scheme": "FP8_DYNAMIC", "linears": ["q_proj"]}]},
            "self_attn.q_proj (FP8_DYNAMIC) and self_attn.k_proj (W4A16 in groups of 32)",
        ),
        (
            {"schemes": [{"scheme": "exact", "linears": ["up_proj"]}]},
            "mlp.gate_proj (W4A16 in groups of 32) and mlp.up_proj (exact)",
        ),
        (
            {"schemes": [{"scheme": "W4A16", "linears": ["experts"], "group_size": 32}]},
            "matches no linear of the model's blocks 0 to 3; kinds: attention, mlp, lm_head, ",
        ),
        (
            {"schemes": [{"scheme": "FP8_DYNAMIC", "blocks": [4]}]},
            "quantization.schemes.0.blocks: there is no block 4; the model has blocks 0 to 3",
        ),
        (
            {"schemes": [{"scheme": "FP8_DYNAMIC", "linears": ["q_porj", "mlp"]}]},
            "'q_porj' matches no linear of the model's blocks 0 to 3; did you mean q_proj?",
        ),
        (
            {"schemes": [{"scheme": "exact", "linears": ["atention"], "blocks": [-5, 7]}]},
            "'atention' matches no linear of the model's blocks 0 to 3; did you mean attention?",
        ),
        (
            {"schemes": [{"scheme": "exact", "linears": ["atention"], "blocks": [-5, 7]}]},
            "quantization.schemes.0.blocks: -5, 7 out of range",
        ),
        (
            {
                "schemes": [
                    {"scheme": "FP8_DYNAMIC", "linears": ["mlp"]},
                    {"scheme": "W8A8", "linears": ["down_proj"]},
                ]
            },
            "quantization.schemes.1: rules before it name all of its linears",
        ),
        (
            {"schemes": [{"scheme": "FP8_BLOCK", "linears": ["mlp"]}], "method": "gptq"},
            "quantization.schemes.0.group_size: 128 does not divide",
        ),
        ({"schemes": [{"scheme": "exact"}]}, "leave no linear to quantize"),
    ],
)
def test_rules_that_cannot_work_are_refused(
    quantization: dict[str, Any],
    expected: str,
    make_model: Fixture,
    small_recipe: Fixture,
    tmp_path: Path,
) -> None:
    source = llama_with(make_model, tmp_path / "source", hidden_size=64)
    recipe = small_recipe(quantization=quantization)
    found = [str(problem) for problem in input_problems(recipe, FolderSource(source))]
    assert any(expected in each for each in found), found


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_vllm_builds_mixtures_whose_experts_differ(
    family: str, make_model: Fixture, small_recipe: Fixture, tmp_path: Path
) -> None:
    """With dummy weights: names and shapes, for there is no kernel for all of it on CPUs."""
    counts = {"qwen3_moe": MOE, "mixtral": {"num_local_experts": 4, **SIZES}}[family]
    source = make_model(tmp_path / "source", family, num_key_value_heads=2, **counts)
    store, experts = LocalStore(tmp_path / "store"), {"linears": ["experts"], "group_size": 32}
    rules = [
        {"scheme": "FP8_DYNAMIC", "linears": ["attention"]},
        {"scheme": "W8A16", "blocks": [0, -1], **experts},
        {"scheme": "exact", "blocks": [1], "linears": ["experts"]},
    ]
    recipe = small_recipe(quantization={"schemes": rules})
    model = fetch(store, str(source))
    checkpoint, adapter = open_model(ReceiptSource(store, model))
    said = dry_load(store, recipe.quantization, model, checkpoint, adapter, {})
    assert "loaded the model with dummy weights" in said
    rules[1]["linears"] = ["re:layers.0.*experts.1"]
    split = small_recipe(quantization={"schemes": rules})
    (problem,) = input_problems(split, ReceiptSource(store, model))
    assert "in block 0, which vLLM fuses into model.layers.0" in problem.what


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
@pytest.mark.parametrize("scheme", ["FP8", "FP8_STATIC"])
def test_vllm_builds_what_it_has_no_kernel_for(
    scheme: str, make_model: Fixture, small_recipe: Fixture, tmp_path: Path
) -> None:
    """Its CPU build cannot round to FP8 with a given step, which it prepares both with."""
    source, store = llama_with(make_model, tmp_path / "source"), LocalStore(tmp_path / "store")
    recipe = small_recipe(quantization={"schemes": [{"scheme": scheme}]})
    model = fetch(store, str(source))
    checkpoint, adapter = open_model(ReceiptSource(store, model))
    said = dry_load(store, recipe.quantization, model, checkpoint, adapter, {})
    assert "by names and shapes where it has no kernel" in said


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
def test_vllm_finds_the_scheme_of_each_expert(
    make_model: Fixture, small_recipe: Fixture, tmp_path: Path
) -> None:
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
        CompressedTensorsConfig,
    )

    source = make_model(tmp_path / "source", "qwen3_moe", num_key_value_heads=2, **MOE)
    adapter = open_model(FolderSource(source))[1]
    rules = [
        {"scheme": "FP8_DYNAMIC", "linears": ["attention"]},
        {"scheme": "W8A16", "blocks": [0, -1], "linears": ["experts"], "group_size": 32},
        {"scheme": "exact", "blocks": [1], "linears": ["experts"]},
    ]
    section = small_recipe(quantization={"schemes": rules}).quantization
    config = format_registry.get_format("compressed-tensors").quantization_config(
        checkpoint_scheme(section, adapter)
    )
    vllm = CompressedTensorsConfig.from_config(config)
    vllm.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    for block, bits in enumerate((8, None, 4, 8)):
        for part in ("gate_proj", "up_proj", "down_proj"):  # as it asks for an expert
            name = f"model.layers.{block}.mlp.experts.0.{part}"
            found = vllm.get_scheme_dict(torch.nn.Linear(1, 1), name)
            assert (found and found["weights"].num_bits) == bits, name
        for part in ("qkv_proj", "o_proj"):
            name = f"model.layers.{block}.self_attn.{part}"
            found = vllm.get_scheme_dict(torch.nn.Linear(1, 1), name)
            assert found is not None
            assert found["format"] == "float-quantized"
