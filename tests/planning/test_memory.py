"""Memory of steps: as it was measured, and what it follows from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_sizes import LLAMA_8B, SMOLLM2

from quantlib.checkpoint.source import FolderSource
from quantlib.models import open_model
from quantlib.planning import HARDWARE, quantity
from quantlib.planning.memory import (
    BASE,
    Memory,
    calibrate_memory,
    quantize_memory,
    validate_memory,
)
from quantlib.planning.model import model_sizes
from quantlib.quantizers.batches import experts_at_once
from quantlib.recipe import Recipe

MIB, GIB = 1 << 20, 1 << 30
MORE_WEIGHTS = dataclasses.replace(SMOLLM2, total_bytes=2_208_525_696)
NO_WEIGHTS = dataclasses.replace(SMOLLM2, total_bytes=0, embedding_bytes=0)
CPU = HARDWARE["cpu"]
H100 = HARDWARE["h100-80g"]


@pytest.mark.parametrize(
    ("step", "planned", "measured"),
    [
        ("calibrate", calibrate_memory(SMOLLM2, 16_384, CPU, 2), 859),
        ("quantize", quantize_memory(SMOLLM2, 16_384, CPU, 2), 1066),
        ("validate", validate_memory(SMOLLM2, 512, CPU, 2), 2387),
        ("validate", validate_memory(MORE_WEIGHTS, 512, CPU, 2), 5120),
        ("validate", validate_memory(NO_WEIGHTS, 64, CPU, 2), 1671),
    ],
)
def test_memory_is_as_measured(step: str, planned: Memory, measured: int) -> None:
    assert planned.host / MIB == pytest.approx(measured, rel=0.2), step


def test_memory_grows_with_tokens_and_not_with_blocks() -> None:
    tokens = 65536
    few = quantize_memory(LLAMA_8B, tokens, CPU, 4).host
    many = quantize_memory(LLAMA_8B, 2 * tokens, CPU, 4).host
    # Three times the residual stream in float32, and the input of the widest linear.
    assert many - few == tokens * (12 * 4096 + 4 * 14336)
    unread = quantize_memory(LLAMA_8B, 0, CPU, 4).host
    # The block in float32 and its codes, and what quantizing the largest linear takes.
    assert unread == BASE + 5 * LLAMA_8B.largest_block_elements + 5 * 4 * 4096 * 14336
    assert calibrate_memory(LLAMA_8B, 0, CPU, 4).host < BASE  # not even torch is imported
    assert BASE > 530 * MIB  # what importing the build with CUDA's libraries takes
    boundary = 4 * 4096 + 2 * 2 * 4096
    expected = BASE + tokens * boundary + 4 * LLAMA_8B.largest_block_elements
    assert calibrate_memory(LLAMA_8B, tokens, CPU, 4).host == expected


def test_a_gpu_worker_holds_one_block_and_its_tokens() -> None:
    memory = quantize_memory(LLAMA_8B, 65536, H100, 2)
    hessians = 8 * 4 * 14336**2
    assert hessians < memory.device < hessians + 12 * GIB
    assert memory.host < 8 * GIB


@pytest.mark.parametrize(
    ("bytes_needed", "limit"), [(1, "1Gi"), (GIB, "2Gi"), (10 * GIB, "12Gi"), (100 * GIB, "120Gi")]
)
def test_limits_have_headroom(bytes_needed: int, limit: str) -> None:
    assert quantity(bytes_needed) == limit


def test_experts_that_are_quantized_together_are_counted(
    small_recipe: Callable[..., Recipe], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    sizes = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    checkpoint, adapter = open_model(FolderSource(make_model(tmp_path, "qwen3_moe", **sizes)))
    (mixture,) = adapter.layout.kind(0).experts
    assert mixture.chosen == 2
    shapes = adapter.layout.kind(0).expert_shapes
    assert shapes == ((128, 64), (64, 64))

    def held(tokens: int, **quantization: Any) -> int:
        found = model_sizes(small_recipe(quantization=quantization), checkpoint, adapter)
        rest = BASE + 12 * tokens * 64 + 5 * found.largest_block_elements
        return quantize_memory(found, tokens, CPU, 4).host - rest

    assert experts_at_once(shapes, "cpu") > 8
    gate_up = 8 * 4 * (8 * 64**2 + 5 * 128 * 64)
    assert held(16) == 4 * 16 * 64 + gate_up
    # Each token is held by two experts that wait at their down projections.
    assert held(10**6) == 4 * 10**6 * 64 * 2 + 8 * 4 * (8 * 64**2 + 5 * 64 * 64)
    assert held(0, method="minmax") == 5 * 4 * 64 * 64  # one by one
    together, alone = (
        model_sizes(small_recipe(quantization={"method": method}), checkpoint, adapter)
        for method in ("gptq", "minmax")
    )
    assert {group.experts for group in together.groups} == {0, 8}
    assert {group.experts for group in alone.groups} == {0}
