"""``quantlib quantize --scheme NAME --validate`` of every scheme, dense and with experts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Command

from quantlib.evaluation.choose_engine import installed_vllm
from quantlib.schemes import SCHEMES

_INSTALLED = installed_vllm()

KERNELS, EMULATION = "", "computed by emulation"
WEIGHTS = "judged by its dequantized weights"
SEEN: dict[tuple[str, str], tuple[float, str]] = {
    ("W2A16", "dense"): (1.2, EMULATION),
    ("W2A16", "mixture"): (1, EMULATION),
    ("W4A16", "dense"): (0.12, KERNELS),
    ("W4A16", "mixture"): (0.092, WEIGHTS),
    ("W4A16_ASYM", "dense"): (0.12, KERNELS),
    ("W4A16_ASYM", "mixture"): (0.087, EMULATION),
    ("W8A16", "dense"): (0.00079, EMULATION),
    ("W8A16", "mixture"): (0.00055, WEIGHTS),
    ("W8A8", "dense"): (0.002, KERNELS),
    ("W8A8", "mixture"): (0.0015, EMULATION),
    ("W4A8", "dense"): (0.12, KERNELS),
    ("W4AFP8", "dense"): (0.13, EMULATION),
    ("W4AFP8", "mixture"): (0.098, EMULATION),
    ("FP8", "dense"): (0.021, EMULATION),
    ("FP8", "mixture"): (0.015, EMULATION),
    ("FP8_DYNAMIC", "dense"): (0.02, KERNELS),
    ("FP8_DYNAMIC", "mixture"): (0.014, EMULATION),
    ("FP8_STATIC", "dense"): (0.022, EMULATION),
    ("FP8_BLOCK", "dense"): (0.021, EMULATION),
    ("FP8_BLOCK", "mixture"): (0.014, EMULATION),
    ("NVFP4", "dense"): (0.23, EMULATION),
    ("NVFP4", "mixture"): (0.17, EMULATION),
    ("NVFP4A16", "dense"): (0.089, EMULATION),
    ("NVFP4A16", "mixture"): (0.063, EMULATION),
    ("MXFP4A16", "dense"): (0.15, EMULATION),
    ("MXFP4A16", "mixture"): (0.12, EMULATION),
    ("MXFP4", "dense"): (0.36, EMULATION),
    ("MXFP4", "mixture"): (0.29, EMULATION),
    ("MXFP8", "dense"): (0.023, EMULATION),
    ("MXFP8", "mixture"): (0.016, EMULATION),
}
"""Nats of KL divergence of these models, whose weights are random, and who computed them."""

REFUSED = {
    "W4A8": "vLLM reads no packed experts of four bits with int8 activations",
    "FP8_STATIC": "vLLM serves experts with fp8 activations per token only",
}
"""Schemes that no experts are served in."""

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "initializer_range": 0.1,
}
# With every expert chosen for every token, no token goes elsewhere because scores were rounded.
MIXTURE = {"num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 256}


@pytest.fixture(scope="module")
def models(
    make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "dense": make_model(root / "dense", "llama", **SIZES),
        "mixture": make_model(root / "mixture", "qwen3_moe", **SIZES, **MIXTURE),
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of all runs: one store, in which originals are judged once."""
    root = tmp_path_factory.mktemp("settings")
    validation = {
        "num_samples": 4,
        "sequence_length": 64,
        "prompts": ["The engine"],
        "max_new_tokens": 1,
        "thresholds": {
            "max_perplexity_increase": 10,
            "max_kl_mean": 20,
            "min_top1_agreement": 0.01,
        },
    }
    (root / "recipe.json").write_text(json.dumps({"validation": validation}))
    small = ["--num-samples", "8", "--sequence-length", "64"]
    return ["--recipe", str(root / "recipe.json"), "--store", str(root / "store"), *small]


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(_INSTALLED is None or not _INSTALLED.on_cpu, reason="no vLLM for CPUs")
@pytest.mark.usefixtures("shared_engines")
@pytest.mark.parametrize("kind", ["dense", "mixture"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_is_judged(
    scheme: str,
    kind: str,
    models: dict[str, Path],
    settings: list[str],
    quantlib: Command,
    tmp_path: Path,
) -> None:
    command = ["quantize", "--model", models[kind], "--output", tmp_path / "out", *settings]
    done = quantlib(*command, "--validate", "--scheme", scheme)
    if kind == "mixture" and scheme in REFUSED:
        assert done.returncode == 2
        assert REFUSED[scheme] in done.stderr
        return
    assert done.returncode == 0, done.stderr
    divergence, by = SEEN[scheme, kind]
    verdict = done.stdout.splitlines()[0]
    assert verdict.startswith("passed: all ")
    assert by in verdict and by in done.stderr
    assert (by == KERNELS) == verdict.endswith("within their limits")
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert report["evaluation"]["engine"] == "vllm"
    # What stayed exact, or is judged so, is far below.
    found = report["evaluation"]["kl_mean"]
    assert divergence / 3 < found < 1.5 * divergence
