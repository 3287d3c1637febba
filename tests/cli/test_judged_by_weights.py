"""Experts that no CPU kernel of vLLM computes, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from command import Command

from quantlib.evaluation.choose_engine import installed_vllm
from quantlib.evaluation.dry_load import SWITCH_VARIABLE
from quantlib.evaluation.judging import in_words

EXPERTS = "vLLM's CPU kernels for quantized experts need AMX instructions"


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
def test_quantized_experts_pass_the_gate_of_a_cpu(
    quantlib: Command,
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vllm = installed_vllm()
    assert vllm is not None
    if not vllm.on_cpu:
        pytest.skip("this vLLM has kernels")
    monkeypatch.setenv(SWITCH_VARIABLE, "auto")
    mixtral = make_model(
        tmp_path / "m", "mixtral", num_local_experts=4, num_hidden_layers=2, hidden_size=128
    )
    reports = []
    for name in ("vllm", "transformers", "emulated"):
        engine, form = name, "gptq"
        if name == "emulated":
            engine, form = "vllm", "compressed-tensors"
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(
            f"quantization: {{weights: {{bits: 4, group_size: 32}}, format: {form}}}\n"
            "calibration: {num_samples: 8, sequence_length: 64}\n"
            "validation:\n"
            f"  {{engine: {engine}, num_samples: 4, sequence_length: 64, max_new_tokens: 4,\n"
            "   answer_tokens: 4,\n"
            "   thresholds: {max_kl_mean: 9, max_perplexity_increase: 9,\n"
            "                min_top1_agreement: 0.01, max_undercalibrated_experts: 1}}\n"
        )
        done = quantlib(
            "quantize", "--model", mixtral, "--output", tmp_path / name,
            "--recipe", recipe, "--validate", "--store", tmp_path / "store",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        report = json.loads((tmp_path / name / "quantization_report.json").read_text())
        reports.append((done, report))
    (done, report), (_, other), (emulated, same) = reports
    words = in_words(f"{EXPERTS}; its loader and layout are left to the dry load")
    assert f"the checkpoint will be {words}" in done.stderr
    assert f"passed: all 4 checks are within their limits; {words}" in done.stdout
    assert report["verdict"]["reason"].endswith(words)
    assert (
        "judged by its dequantized weights"
        in (tmp_path / "vllm" / "quantization_report.html").read_text()
    )
    remarks = next(step["remarks"] for step in report["steps"] if step["step"] == "plan")
    loaded = "loaded the model with dummy weights on cpu, by names and shapes"
    assert any(loaded in remark for remark in remarks)
    words = in_words(None, EXPERTS)
    assert f"the checkpoint will be {words}" in emulated.stderr
    assert same["verdict"]["reason"].endswith(words)
    assert "computed by emulation" in (tmp_path / "emulated/quantization_report.html").read_text()
    ours, theirs, third = (each["evaluation"] for each in (report, other, same))
    assert (third["checkpoint_dequantized_reason"], third["checkpoint_emulated_reason"]) == (
        None,
        EXPERTS,
    )
    assert third["quantized"]["tokens_per_second"] is None
    # The format alone is another: vLLM multiplies the same codes out.
    assert third["kl_mean"] == pytest.approx(ours["kl_mean"], rel=0.05)
    assert ours["engine"] == "vllm"
    assert ours["quantized"]["tokens_per_second"] is None
    assert ours["original"]["tokens_per_second"] > 0
    assert theirs["checkpoint_dequantized_reason"] is None
    # transformers computes the same codes in its own way.
    for side in ("original", "quantized"):
        assert ours[side]["perplexity"] == pytest.approx(theirs[side]["perplexity"], rel=0.02)
    assert ours["kl_mean"] == pytest.approx(theirs["kl_mean"], rel=0.3)
