"""A quantized source gives what its dequantized checkpoint gives, byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import zoo
from command import Command
from quantized_models import KINDS, quantized_experts, quantized_model
from safetensors.torch import load_file, save_file
from torch import Tensor

OPTIONS = [
    "--group-size", "32", "--num-samples", "8", "--sequence-length", "64", "--num-ranges", "2",
    "--layer-wise", "--layers", "0,1,2", "--format", "compressed-tensors",
]  # fmt: skip


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_quantizing_the_dequantized_checkpoint(
    quantlib: Command, tiny_llama: Path, tmp_path: Path, kind: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "quantization: {ignore: [o_proj]}\nvalidation: {num_samples: 4, sequence_length: 64}\n"
    )
    stored, plain = quantized_model(tiny_llama, tmp_path / "models", kind)
    made = []
    for model in (stored, plain):
        output = tmp_path / f"out-{model.name}"
        done = quantlib(
            "quantize", "--model", model, "--output", output, "--recipe", recipe, *OPTIONS
        )
        assert done.returncode == 0, done.stderr
        made.append((output, done.stdout))
    (output, said), (expected, _) = made
    ours, theirs = tensors_of(output), tensors_of(expected)
    assert set(ours) == set(theirs)
    assert "model.layers.2.mlp.up_proj.weight_packed" in ours
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name
    for name in ("config.json", "model.safetensors.index.json"):
        assert (output / name).read_bytes() == (expected / name).read_bytes()
    # What is left exact stands there dequantized; what was plain, as it was.
    original, restored = load_file(tiny_llama / "model.safetensors"), tensors_of(plain)
    for name in ("model.layers.3.mlp.up_proj.weight", "model.layers.0.self_attn.o_proj.weight"):
        assert torch.equal(ours[name], restored[name])
        assert ours[name].dtype == torch.bfloat16
    for name in ("model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"):
        assert torch.equal(ours[name], original[name])
    report = json.loads((output / "quantization_report.json").read_text())
    words = f"{KINDS[kind][2]}, dequantized to BF16 while reading"
    assert report["model"]["source"] == {"kind": "folder", "quantized": words}
    assert f"source: {words}" in said
    assert words in (output / "quantization_report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss"])
def test_mixtures_as_their_publishers_store_them(
    quantlib: Command, tmp_path: Path, family: str
) -> None:
    """DeepSeek's FP8 in blocks, experts and all; gpt_oss' experts in MXFP4, which stay exact."""
    source = zoo.make(family, tmp_path / "source")
    if family == "gpt_oss":
        folders = quantized_experts(source, tmp_path / "models")
    else:
        folders = quantized_model(source, tmp_path / "models", "fp8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "quantization: {format: compressed-tensors, weights: {group_size: 32}}\n"
        "calibration: {num_samples: 4, sequence_length: 64}\nnum_ranges: 3\n"
    )
    made = []
    for model in folders:
        output = tmp_path / f"out-{model.name}"
        done = quantlib("quantize", "--model", model, "--output", output, "--recipe", recipe)
        assert done.returncode == 0, done.stderr
        made.append(tensors_of(output))
    ours, theirs = made
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    experts = "model.layers.1.mlp.experts"
    if family == "gpt_oss":
        expected = load_file(folders[1] / "model.safetensors")[f"{experts}.down_proj"]
        assert torch.equal(ours[f"{experts}.down_proj"], expected)
        assert "model.layers.1.self_attn.o_proj.weight_packed" in ours
    else:
        assert f"{experts}.7.down_proj.weight_packed" in ours
    assert not [name for name in ours if name.endswith(("_scale_inv", "_blocks", "_scales"))]


def test_what_cannot_be_read_is_refused_before_any_work(
    quantlib: Command, tiny_llama: Path, tmp_path: Path
) -> None:
    stored, _ = quantized_model(tiny_llama, tmp_path / "models", "fp8")
    tensors = load_file(stored / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight_scale_inv"]
    name = "model.layers.1.mlp.up_proj.weight_scale_inv"
    tensors[name] = tensors[name][:1].clone()
    save_file(tensors, stored / "model.safetensors", {"format": "pt"})
    command = ["quantize", "--model", stored, "--output", tmp_path / "out", *OPTIONS]
    done = quantlib(*command)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: model.layers.1.mlp.up_proj.weight_scale_inv: has shape [1, 2]; of "
        "model.layers.1.mlp.up_proj.weight [128, 64] it has to be [4, 2], blocks of 32x32; the "
        "checkpoint is damaged or of another kind",
        "error: model.layers.2.mlp.up_proj.weight: is in FP8, but there is no "
        "model.layers.2.mlp.up_proj.weight_scale_inv; the checkpoint is damaged or of another kind",
    ]
    config = json.loads((stored / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (stored / "config.json").write_text(json.dumps(config))
    done = quantlib(*command)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: config.json: quantization_config: says quant_method 'bitsandbytes', which is not "
        "read; what is: awq, compressed-tensors, fp8, gptq, mxfp4; give the original checkpoint"
    ]
    shutil.rmtree(stored)
    assert not (tmp_path / "out").exists()


def test_nan_among_the_codes_is_found(quantlib: Command, tiny_llama: Path, tmp_path: Path) -> None:
    stored, _ = quantized_model(tiny_llama, tmp_path / "models", "fp8")
    tensors = load_file(stored / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"].view(torch.uint8)[3, 5] = 0xFF
    save_file(tensors, stored / "model.safetensors", {"format": "pt"})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("validation: {num_samples: 4, sequence_length: 64}\n")
    command = ["quantize", "--model", stored, "--output", tmp_path / "out", *OPTIONS]
    done = quantlib(*command, "--recipe", recipe)
    assert done.returncode == 2
    assert "model.layers.1.mlp.up_proj.weight: holds NaN or Inf in 1 of 8192" in done.stderr
