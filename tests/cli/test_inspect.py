"""``quantlib inspect``: what a model is made of, by its headers."""

from __future__ import annotations

import json
from pathlib import Path

import headers
import pytest
import torch
import zoo
from command import Command
from safetensors.torch import save_file
from tomorrow import disguise, drafting_layers, state_of


def test_a_dense_model(quantlib: Command, tiny_llama: Path) -> None:
    done = quantlib("inspect", tiny_llama)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    elements = {name: tensor.numel() for name, tensor in state_of(tiny_llama).items()}
    whole = sum(elements.values())
    block = sum(count for name, count in elements.items() if ".layers.0." in name)
    linears = sum(count for name, count in elements.items() if "_proj" in name)
    assert lines[0] == "LlamaForCausalLM (model_type llama)"
    assert lines[1] == f"{whole / 1e3:.3g} K parameters, {2 * whole / 1e6:.3g} MB, 4 blocks"
    assert "transformers computes it: every method works" in lines
    assert f"blocks 0-3 (4): {block / 1e3:.3g} K parameters each" in lines
    rows = [" ".join(line.split()) for line in lines]
    assert "self_attn.q_proj, self_attn.k_proj, self_attn.v_proj 64 -> 64 + 32 + 32" in rows
    assert "mlp.down_proj 128 -> 64" in rows
    assert "model.embed_tokens 32.8 K 1 tensor embeds tokens, or gives the logits" in rows
    share = f"{linears / whole:.1%}"
    assert f"would be quantized: {linears / 1e3:.3g} K parameters, {share}" in rows
    assert "vLLM 0.32.0 or later serves it by LlamaForCausalLM" in rows
    assert "computed as one, so of one scheme: qkv_proj = q_proj + k_proj + v_proj; " in done.stdout


def test_json_of_a_mixture_of_two_kinds(quantlib: Command, tmp_path: Path) -> None:
    folder = zoo.make("qwen3_5_moe", tmp_path / "m")
    done = quantlib("inspect", folder, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    elements = {name: tensor.numel() for name, tensor in state_of(folder).items()}
    assert found["parameters"] == sum(elements.values())
    assert found["bytes"] == 2 * sum(elements.values())
    assert (found["walked"], found["stored"]) == (True, None)
    gated, full = found["kinds"]
    assert (gated["blocks"], full["blocks"]) == ("0-2", "3")
    (first,) = (each for each in gated["inputs"] if "mlp.experts.*.up_proj" in each["linears"])
    assert first["experts"] == zoo.FAMILIES["qwen3_5_moe"]["num_experts"]
    assert "linear_attn.conv1d" in gated["exact"]
    assert found["quantized_parameters"] < sum(
        count for name, count in elements.items() if ".layers." in name
    )
    assert found["vllm"]["served_by"] == "Qwen3_5MoeForCausalLM"


def test_a_model_that_nobody_knows(quantlib: Command, tiny_llama: Path, tmp_path: Path) -> None:
    folder = disguise(tiny_llama, tmp_path / "unknown", drafting_layers(64))
    for path in folder.glob("tokenizer*"):
        path.unlink()  # nothing of it is looked at
    done = quantlib("inspect", folder)
    assert done.returncode == 0, done.stderr
    assert "no text can be run through it: config.json: model_type: transformers" in done.stdout
    assert "what works without text: --method minmax, --recipe fp8" in done.stdout
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "core.mtp 8.19 K 1 tensor drafts tokens, by its name or number" in rows
    assert "vLLM 0.32.0 is not known to serve TomorrowForCausalLM" in rows


def test_what_is_no_model_is_one_line(quantlib: Command, tmp_path: Path) -> None:
    done = quantlib("inspect", tmp_path / "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no such folder" in done.stderr
    (tmp_path / "flat").mkdir()
    save_file({"up.weight": torch.ones(64, 64)}, tmp_path / "flat" / "model.safetensors")
    (tmp_path / "flat" / "config.json").write_text('{"model_type": "flat"}')
    done = quantlib("inspect", tmp_path / "flat")
    assert done.returncode == 2
    assert "shows no blocks: of 1 tensors (up.weight)" in done.stderr


@pytest.mark.slow
def test_deepseek_v3(quantlib: Command, tmp_path: Path) -> None:
    """671 billion parameters in 61 blocks with 256 experts, and a layer for drafting."""
    folder = headers.write(tmp_path / "v3", headers.DEEPSEEK_V3, headers.deepseek_v3())
    done = quantlib("inspect", folder, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    drafting = next(part for part in found["outside"] if part["name"] == "model.layers.61")
    outside = found["parameters"] - drafting["parameters"]
    assert outside == 671_026_419_200  # as its card says
    assert [(kind["blocks"], len(kind["inputs"])) for kind in found["kinds"]] == [
        ("0-2", 5),
        ("3-60", 7),
    ]
    assert found["stored"] == "FP8 block 128x128"
    assert found["quantized_parameters"] / outside > 0.97


def test_the_model_may_be_named(quantlib: Command, tiny_llama: Path) -> None:
    plain, named = quantlib("inspect", tiny_llama), quantlib("inspect", "--model", tiny_llama)
    assert (named.returncode, named.stdout) == (0, plain.stdout)
    planned = [quantlib("plan", *words) for words in ([tiny_llama], ["--model", tiny_llama])]
    assert planned[0] == planned[1]
    twice = quantlib("inspect", tiny_llama, "--model", tiny_llama)
    assert (twice.returncode, "given twice" in twice.stderr) == (2, True)
    none = quantlib("plan")
    assert (none.returncode, "Missing argument 'MODEL'" in none.stderr) == (2, True)
