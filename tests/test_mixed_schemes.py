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
from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import read_tensor
from quantlib.checks.group_size import settle
from quantlib.checks.linears import checkpoint_scheme, linear_schemes
from quantlib.checks.recipe import parse_recipe
from quantlib.formats import format_registry
from quantlib.formats.dequantize import dequantized_state
from quantlib.models import open_model
from quantlib.recipe import Recipe
from quantlib.store import LocalStore

Fixture = Callable[..., Any]

SIZES = {"initializer_range": 0.1, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
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
            {"scheme": "W4A16", "linears": ["re:mlp.down_proj$"], "blocks": [1, -1], "group_size": 32},
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


def llama_with(
    make_model: Fixture, folder: Path, **changes: Any
) -> Path:
    return make_model(folder, "llama", num_key_value_heads=2, **SIZES | changes)


def exported(made: Any, folder: Path) -> Path:
    for file in made.checkpoint.facts["checkpoint_files"]:
        made.store.export_file(made.checkpoint.path(file), folder / file)
    return folder


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
def test_vllm_computes_what_the_quantizer_meant(
    make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    source, store = llama_with(make_model, tmp_path / "source"), LocalStore(tmp_path / "store")
    folders = [
        exported(run_steps(store, small_recipe(quantization=each), source), tmp_path / str(number))
        for number, each in enumerate(MIXTURES.values())
    ]
    for folder, found in zip(folders, served_logprobs(folders, tmp_path), strict=True):
        assert_served_as_meant(found, reference_logprobs(folder))
