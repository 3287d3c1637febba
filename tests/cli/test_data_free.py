"""Models that nobody knows, and known ones without text: quantized without a forward."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Command, Done
from tomorrow import ARCHITECTURE, MODEL_TYPE, disguise, drafting_layers, renamed, state_of

from quantlib.models.fusion import vllm_version

MakeModel = Callable[..., Path]
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("llama", {}),
    "experts": ("qwen3_moe", MIXTURE),
    "stacked experts": ("qwen3_moe", {**MIXTURE, "stacked_experts": True}),
}
RECIPES = {
    "minmax": "quantization: {method: minmax, weights: {bits: 4, group_size: 32}}\nnum_ranges: 3\n",
    "hqq": "quantization: {method: hqq, options: {importance: none}, "
    "weights: {bits: 4, group_size: 32, symmetric: false}}\n",
    "fp8": "quantization: {method: minmax, activations: fp8, "
    "weights: {type: float, bits: 8, group_size: -1}}\n",
}


@pytest.fixture(scope="module")
def models(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: make_model(folder / name.replace(" ", "-"), family, **config)
        for name, (family, config) in SHAPES.items()
    }


@pytest.fixture
def quantize(quantlib: Command, tmp_path: Path) -> Callable[..., Done]:
    """Quantizes a model by a recipe that is given as text."""

    def run(model: Path, output: str, recipe: str, *options: str) -> Done:
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe)
        where = ["--model", model, "--output", tmp_path / output, "--recipe", path]
        return quantlib("quantize", *where, *options)

    return run


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_under_another_name_gives_the_same(
    models: dict[str, Path],
    quantize: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    shape: str,
    recipe: str,
) -> None:
    # Neither of them needs a module of transformers.
    monkeypatch.setattr("quantlib.models.streamed.Skeleton", None)
    monkeypatch.setattr("quantlib.steps.calibrate._collect", None)
    extra = drafting_layers(64)
    unknown = disguise(models[shape], tmp_path / "unknown", extra)
    done = quantize(models[shape], "known-w4", RECIPES[recipe])
    assert done.returncode == 0, done.stderr
    assert "serve:  quantlib deploy --model " in done.stdout
    done = quantize(unknown, "unknown-w4", RECIPES[recipe])
    assert done.returncode == 0, done.stderr
    assert f"does not know '{MODEL_TYPE}', and its code is not part of tr" in done.stderr
    assert done.stdout.endswith(f"vLLM {vllm_version()} is not known to serve {ARCHITECTURE}\n")

    expected = {renamed(name): each for name, each in state_of(tmp_path / "known-w4").items()}
    found = state_of(tmp_path / "unknown-w4")
    assert found.keys() == expected.keys() | extra.keys()
    for name, tensor in (expected | extra).items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name

    config = json.loads((tmp_path / "unknown-w4" / "config.json").read_text())
    assert config["architectures"] == [ARCHITECTURE]
    assert "auto_map" not in config
    routers = [f"core.blocks.{block}.mlp.gate" for block in range(4)] if shape != "dense" else []
    assert sorted(config["quantization_config"]["ignore"]) == sorted(
        ["lm_head", "re:^core\\.blocks\\.4\\.", "re:^core\\.mtp\\.", "re:^mtp\\.", *routers]
    )
    report = json.loads((tmp_path / "unknown-w4" / "quantization_report.json").read_text())
    (planned,) = (step for step in report["steps"] if step["step"] == "plan")
    assert planned["remarks"][0].startswith("The blocks are those that names and shapes show: ")
    assert report["calibration"] is None


def test_no_tokenizer_is_needed_without_text(
    models: dict[str, Path], quantize: Callable[..., Done], tmp_path: Path
) -> None:
    unknown = disguise(models["dense"], tmp_path / "unknown")
    for path in unknown.glob("tokenizer*"):
        path.unlink()
    (unknown / "tiktoken.model").write_text("IQ== 0\n")  # which only code of the model reads
    done = quantize(unknown, "out", RECIPES["minmax"])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "tiktoken.model").exists()
    done = quantize(unknown, "judged", RECIPES["minmax"], "--validate")
    assert done.returncode == 2
    assert f"{unknown}: has no tokenizer; add tokenizer.json" in done.stderr


WITHOUT_TEXT = (
    "so that no text can be run through its blocks; quantize without text: --method minmax, "
    "--recipe fp8, or method hqq with options {importance: none}"
)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"model_type": "mambo", "architectures": ["MamboForCausalLM"]},
            "config.json: model_type: transformers ",
        ),
        (
            {"model_type": "mambo", "architectures": [], "auto_map": {"AutoConfig": "m.Config"}},
            "does not know 'mambo', and its code is not part of transformers",
        ),
        (
            {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
            "config.json: model_type: 't5' is an encoder and a decoder, which cannot be walked",
        ),
        (
            {"model_type": "vit", "architectures": ["ViTModel"]},
            "transformers has no class of 'vit' that gives logits (looked at ViTModel)",
        ),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "architectures: LlamaForSequenceClassification classifies and gives no logits of token",
        ),
        ({"rope_scaling": [1]}, "config.json: transformers refuses it: "),
        ({"hidden_act": "relu7"}, "config.json: transformers cannot build LlamaForCausalLM: "),
    ],
)
def test_what_cannot_be_walked_says_what_works(
    make_model: MakeModel,
    quantize: Callable[..., Done],
    tmp_path: Path,
    fields: dict[str, Any],
    says: str,
) -> None:
    folder = make_model(tmp_path / "m")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    done = quantize(folder, "refused", "quantization: {weights: {group_size: 32}}\n")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: config.json")
    assert says in line
    assert line.endswith(WITHOUT_TEXT)
    assert not (tmp_path / "refused").exists()
    done = quantize(folder, "out", RECIPES["minmax"])
    assert done.returncode == 0, done.stderr


def test_a_field_that_nobody_knows(
    make_model: MakeModel, quantize: Callable[..., Done], tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "m")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"residual_scale": 0.22}))
    done = quantize(folder, "refused", "quantization: {weights: {group_size: 32}}\n")
    assert done.returncode == 2
    assert "config.json: residual_scale: 0.22 is unknown for llama, and may change" in done.stderr
    assert "remove it if it does not, else add an adapter: docs/extension_guide.md, or qu" in (
        done.stderr
    )
    done = quantize(folder, "out", RECIPES["minmax"])
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["residual_scale"] == 0.22


def test_no_blocks_to_be_seen(
    make_model: MakeModel, quantize: Callable[..., Done], tmp_path: Path
) -> None:
    folder = disguise(make_model(tmp_path / "m"), tmp_path / "flat")
    state = {name.replace("blocks.", "block_"): each for name, each in state_of(folder).items()}
    from safetensors.torch import save_file

    save_file(state, folder / "model.safetensors", {"format": "pt"})
    done = quantize(folder, "out", RECIPES["minmax"])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        f"error: the checkpoint: shows no blocks: of {len(state)} tensors (core.block_0."
    )


@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        (ARCHITECTURE, "it has no class of that name"),
        pytest.param(  # which it has, but no config
            "BailingMoeForCausalLM",
            "it does not take the config: ",
            marks=[pytest.mark.slow, pytest.mark.vllm],
        ),
    ],
)
def test_what_vllm_does_not_know_is_said_at_plan(
    models: dict[str, Path],
    quantize: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    architecture: str,
    why: str,
) -> None:
    monkeypatch.delenv("QUANTLIB_DRY_LOAD")
    unknown = disguise(models["dense"], tmp_path / "unknown")
    config = json.loads((unknown / "config.json").read_text())
    config["architectures"] = [architecture]
    (unknown / "config.json").write_text(json.dumps(config))
    judged = "validation: {num_samples: 4, sequence_length: 64}\n"
    done = quantize(unknown, "judged", RECIPES["minmax"] + judged, "--validate")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: vLLM ")
    assert f"does not know {architecture}: {why}" in line
    assert "so that the checkpoint cannot be validated; quantlib quantize makes it without" in line
    done = quantize(unknown, "out", RECIPES["minmax"])
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    (planned,) = (step for step in report["steps"] if step["step"] == "plan")
    told = planned["remarks"][1]
    assert told.endswith("The checkpoint is made, and cannot be validated or served by it.")


def test_transformers_cannot_judge_it(
    models: dict[str, Path], quantize: Callable[..., Done], tmp_path: Path
) -> None:
    unknown = disguise(models["dense"], tmp_path / "unknown")
    judged = "validation: {engine: transformers, num_samples: 4, sequence_length: 64}\n"
    done = quantize(unknown, "judged", RECIPES["minmax"] + judged, "--validate")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "validation.engine: transformers cannot judge it: config.json: model_type: tr" in line
    assert line.endswith("let vllm judge, or quantize without --validate")


def write_whisper(folder: Path) -> Path:
    """A tiny Whisper, without a tokenizer."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=512,
        d_model=64,
        num_mel_bins=32,
        max_source_positions=64,
        max_target_positions=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 128 for part in ("encoder", "decoder")},
    )
    torch.manual_seed(0)
    WhisperForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
def test_the_decoder_of_whisper_is_quantized_and_vllm_takes_its_encoder_for_exact(
    quantize: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("QUANTLIB_DRY_LOAD")
    model = write_whisper(tmp_path / "whisper")
    done = quantize(model, "out", RECIPES["minmax"])
    assert done.returncode == 0, done.stderr
    assert "model_type: 'whisper' is an encoder and a decoder, which cannot be" in done.stderr
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    (planned,) = (step for step in report["steps"] if step["step"] == "plan")
    assert " loaded the model with dummy weights on cpu" in planned["remarks"][-1]
    before, after = state_of(model), state_of(tmp_path / "out")
    packed = {name for name in after if name.endswith("_packed")}
    assert len(packed) == 2 * 10
    assert all(name.startswith("model.decoder.layers.") for name in packed)
    for name in before.keys() & after.keys():
        assert torch.equal(before[name], after[name]), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "re:^\\.encoder\\.layers\\." in config["quantization_config"]["ignore"]
