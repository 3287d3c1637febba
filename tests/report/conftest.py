"""A run of the pipeline on a made-up model: real receipts in a real store, invented weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from recipes import settled_recipe

from quantlib.recipe import Recipe
from quantlib.store import FileRecord, LocalStore, Receipt, commit_step
from quantlib.store.receipt import files_digest

DIGEST = "sha256:" + "5a" * 32
LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
WEIGHTS = {
    "model-00001-of-00002.safetensors": b"first weights" * 1000,
    "model-00002-of-00002.safetensors": b"other weights" * 3000,
}

PARTS = [
    {"part": part, "scheme": scheme, "linears": linears, "weights": weights, "bytes": stored}
    for part, scheme, linears, weights, stored in (
        ("MLP", "W4A16 in groups of 64", 90, 80_000_000, 42_500_000),
        ("embeddings", "exact", 0, 28_000_000, 56_000_000),
    )
]

CALIBRATION_TEXT = {
    "source": "the calibration text that ships with quantlib",
    "digest": "sha256:" + "ca" * 32,
    "samples": 128,
    "sequence_length": 512,
    "tokens": 65536,
    "shipped": True,
}


@dataclass(frozen=True)
class Run:
    """What the steps of a run left."""

    store: LocalStore
    recipe: Recipe
    checkpoint: Receipt
    validation: Receipt
    evaluation: dict[str, Any]


def linear_records(blocks: list[int]) -> list[dict[str, Any]]:
    """Errors that rise with the block and differ by linear; block 2's down_proj is damped more."""
    return [
        {
            "block": block,
            "linear": linear,
            "relative_error": 0.002 * (index + 1) * 1.08**block * (1.2 + math.sin(block + index)),
            "relative_weight_error": 0.008 + 0.0005 * index,
            "damping": 0.1 if (raised := (block, index) == (2, 6)) else 0.01,
            "damping_attempts": 2 if raised else 1,
        }
        for block in blocks
        for index, linear in enumerate(LINEARS)
    ]


def expert_records(block: int, tokens: Sequence[int]) -> list[dict[str, Any]]:
    """A mixture of experts; one that fewer than 256 tokens came to saw all of them."""
    return [
        {
            "block": block,
            "linear": f"mlp.experts.{expert}.{name}",
            "relative_error": 0.01,
            "relative_weight_error": 0.01,
            "damping": 0.01,
            "damping_attempts": 1,
            "expert": expert,
            "expert_tokens": count,
            "calibrated_on": "all" if count < 256 else "routed",
        }
        for expert, count in enumerate(tokens)
        for name in ("gate_proj", "up_proj", "down_proj")
    ]


def evaluation_of(passed: bool) -> dict[str, Any]:
    """What the validate step measured."""
    kl_mean = 0.108 if passed else 0.3125
    return {
        "engine": "vllm",
        "engine_version": "0.32.0",
        "device": "cpu",
        "fallback_reason": None,
        "text": {
            "source": "the held-out text that ships with quantlib",
            "digest": "sha256:" + "77" * 32,
            "windows": 40,
            "sequence_length": 512,
            "tokens": 20480,
        },
        "original": {"perplexity": 15.3812, "tokens_per_second": 210.4},
        "quantized": {"perplexity": 16.7655, "tokens_per_second": 264.9},
        "kl_mean": kl_mean,
        "kl_standard_error": 0.0031,
        "kl_method": "over the whole vocabulary, at every position but the first of a window",
        "top1_agreement": 0.8381,
        "generations": [
            {
                "prompt": "The capital of France is",
                "original": " Paris. It is known for the Eiffel Tower.",
                "quantized": " Paris. It is known for its art and its food.",
            },
            {"prompt": "Two and two are", "original": " four.", "quantized": " four."},
            {
                "prompt": "<script>alert('prompt')</script>",
                "original": " <b>bold</b> & {{ braces }}",
                "quantized": " <img src=x onerror=alert(1)>",
            },
        ],
        "gate": {
            "passed": passed,
            "checks": [
                {"name": "perplexity_increase", "value": 0.09, "limit": 0.15, "passed": True},
                {"name": "kl_mean", "value": kl_mean, "limit": 0.2, "passed": passed},
                {"name": "top1_agreement", "value": 0.8381, "limit": 0.75, "passed": True},
            ],
            "reason": "all 3 checks are within their limits"
            if passed
            else "kl_mean is 0.3125, above its limit of 0.2",
        },
    }


def commit_run(
    root: Path,
    *,
    passed: bool = True,
    blocks: int = 6,
    layers: tuple[int, ...] | None = None,
    weights: dict[str, bytes] = WEIGHTS,
    text: dict[str, Any] | None = CALIBRATION_TEXT,
    suppression: dict[str, Any] | None = None,
    alpha: list[float | None] | None = None,
    experts: Sequence[dict[str, Any]] = (),
) -> Run:
    """Commits every step from fetch to validate in a store below ``root``."""
    store = LocalStore(root / "store")
    recipe = settled_recipe(
        {
            "model": "hf://example-org/Tiny-Llama-6@main",
            "quantization": {
                "method": "gptq",
                "weights": {"bits": 4, "group_size": 64},
                **({"layers": list(layers)} if layers else {}),
            },
            "outlier_suppression": suppression,
        }
    )
    quantized = list(layers) if layers else list(range(blocks))

    def commit(
        step: str, parameters: dict[str, Any], inputs: dict[str, Receipt], **content: Any
    ) -> Receipt:
        def work(output: Any) -> None:
            output.facts = content.get("facts", {})
            for name, data in content.get("files", {}).items():
                output.add_bytes(name, data)

        receipt = commit_step(store, step, parameters, inputs, work)
        run = {"seconds": content["seconds"], "peak_mib": content["peak_mib"]}
        store.put_bytes(json.dumps(run).encode(), f"{receipt.aside}/run.json")
        return receipt

    fetched = commit(
        "fetch",
        {"source": recipe.model},
        {},
        seconds=4.0,
        peak_mib=120,
        files={"config.json": b"{}"},
        facts={
            "source": {"kind": "hub", "repo": "example-org/Tiny-Llama-6", "commit": "c0ffee" * 6},
            "model_type": "llama",
            "digest": DIGEST,
            "bytes": 269_060_552,
            "tensors": 272,
        },
    )
    plan = commit("plan", {}, {"model": fetched}, seconds=0.5, peak_mib=60)
    calibration = commit(
        "calibrate",
        {},
        {"model": fetched, "plan": plan},
        seconds=20.0,
        peak_mib=640,
        facts={"text": text} if text else {},
    )
    smoothing = commit(
        "smooth",
        {},
        {"model": fetched, "calibration": calibration},
        seconds=0.25,
        peak_mib=61,
        facts={"alpha": alpha} if alpha else {},
    )
    half = blocks // 2
    parts = {
        f"quantized-{index}": commit(
            "quantize",
            {
                "range": text,
                "quantization": recipe.quantization.model_dump(mode="json"),
                "outlier_suppression": None,
            },
            {"model": fetched, "calibration": calibration, "smoothing": smoothing},
            seconds=seconds,
            peak_mib=600,
        )
        for index, (text, seconds) in enumerate([(f"0:{half}", 30.0), (f"{half}:{blocks}", 42.0)])
    }
    files = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", **weights}
    digest = files_digest(
        {
            name: FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in files.items()
        }
    )
    checkpoint = commit(
        "merge",
        {},
        {"model": fetched, **parts},
        seconds=3.0,
        peak_mib=100,
        files={
            **files,
            "linears.json": json.dumps([*linear_records(quantized), *experts]).encode(),
        },
        facts={
            "checkpoint_digest": digest,
            "checkpoint_files": sorted(files),
            "bytes_original": 269_060_552,
            "bytes_quantized": 121_634_816,
            "quantized_blocks": quantized,
            "blocks": blocks,
            "serve": {"dtype": "bfloat16"},
            "removed": [],
            "parts": PARTS,
        },
    )
    evaluation = evaluation_of(passed)
    reference = commit("reference", {}, {"model": fetched}, seconds=20.0, peak_mib=1400)
    halves = {"checkpoint": checkpoint, "reference": reference}
    comparison = commit("comparison", {}, halves, seconds=30.0, peak_mib=1400)
    validation = commit(
        "validate",
        {},
        {"model": fetched, **halves, "comparison": comparison},
        seconds=50.0,
        peak_mib=1400,
        files={"evaluation.json": json.dumps(evaluation).encode()},
        facts={
            "verdict": "passed" if passed else "regression",
            "reason": evaluation["gate"]["reason"],
            "perplexity_original": evaluation["original"]["perplexity"],
            "perplexity_quantized": evaluation["quantized"]["perplexity"],
            **{
                name: evaluation[name]
                for name in (
                    *("kl_mean", "kl_standard_error", "top1_agreement"),
                    *("engine", "engine_version", "device"),
                )
            },
        },
    )
    return Run(store, recipe, checkpoint, validation, evaluation)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose checkpoint passed the gate."""
    return commit_run(tmp_path)


@pytest.fixture
def make_experts() -> Callable[..., list[dict[str, Any]]]:
    """:func:`expert_records`."""
    return expert_records


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """:func:`commit_run`, for runs that differ from :func:`run`."""
    return commit_run
