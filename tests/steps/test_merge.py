import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError
from quantlib.formats.dequantize import dequantized_state
from quantlib.report.build import build_report
from quantlib.steps.merge import merge
from quantlib.store import LocalStore

Fixture = Callable[..., Any]
CT = {"format": "compressed-tensors"}


@pytest.mark.parametrize(
    ("model_type", "quantization"),
    [
        ("llama", CT),
        ("qwen2", CT | {"weights": {"bits": 4, "group_size": 32, "symmetric": False}}),
        ("qwen3", CT | {"weights": {"bits": 8, "group_size": -1}, "activations": "int8"}),
        ("mistral", CT | {"layers": [1, 2]}),
        ("llama", CT | {"ignore": ["o_proj", "down_proj"]}),
        ("phi3", CT),
        ("gemma3_text", CT | {"layers": [0, 3]}),
    ],
    ids=[
        "llama",
        "qwen2-asymmetric",
        "qwen3-w8a8",
        "mistral-layers",
        "llama-ignore",
        "phi3",
        "gemma3-layers",
    ],
)
@torch.no_grad()
def test_transformers_loads_what_the_quantizer_meant(
    model_type: str,
    quantization: dict[str, Any],
    store: LocalStore,
    make_model: Fixture,
    small_recipe: Fixture,
    run_steps: Fixture,
    tmp_path: Path,
) -> None:
    source = make_model(tmp_path / "source", model_type)
    recipe = small_recipe(num_ranges=2, quantization=quantization)
    folder = run_steps(store, recipe, source).export(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.isfinite(loaded(torch.arange(40)[None]).logits).all()
    state = loaded.state_dict()
    meant = dict(dequantized_state(Checkpoint.open(FolderSource(folder))))
    assert set(meant) <= set(state)
    for name, tensor in meant.items():
        torch.testing.assert_close(state[name], tensor.float(), rtol=2**-8, atol=0)
    assert AutoTokenizer.from_pretrained(folder)("hello").input_ids


def test_index_config_and_serving_arguments(
    store: LocalStore, tiny_llama: Path, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    made = run_steps(store, small_recipe(num_ranges=3), tiny_llama)
    folder = made.export(tmp_path / "out")
    checkpoint = Checkpoint.open(FolderSource(folder))
    original = json.loads((tiny_llama / "config.json").read_text())
    config = dict(checkpoint.config)
    assert config.pop("quantization_config")["quant_method"] == "gptq"
    assert config == original
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    assert weights == [f"model-{n:05}-of-00004.safetensors" for n in range(1, 5)]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.bytes for t in checkpoint.tensors.values())
    assert index["weight_map"]["model.embed_tokens.weight"] == weights[-1]
    assert json.loads((folder / "vllm_config.json").read_text()) == {
        "quantization": "gptq",
        "dtype": "bfloat16",
    }
    facts = made.checkpoint.facts
    assert facts["serve"] == {"dtype": "bfloat16"}
    assert facts["bytes_quantized"] == sum(
        path.stat().st_size for path in folder.glob("*.safetensors")
    )
    assert len(json.loads(store.read(made.checkpoint.path("linears.json")))) == 4 * 7


@pytest.mark.parametrize("size", [64, 32])
def test_why_groups_are_of_their_size_is_kept_for_the_report(
    store: LocalStore, tiny_llama: Path, small_recipe: Fixture, run_steps: Fixture, size: int
) -> None:
    section = {"method": "minmax", "weights": {"bits": 4, "group_size": size}, "layers": [0]}
    made = run_steps(store, small_recipe(quantization=section), tiny_llama)
    method = build_report(store, made.recipe, made.checkpoint, None).method
    assert method.group_size == size
    said = "group size 64: the largest of 128, 64, 32 that divides every linear's input; 128 does"
    assert method.group_size_reason.startswith(said if size == 64 else "")
    assert bool(method.group_size_reason) is (size == 64)


def test_what_names_code_on_a_hub_is_left_out(
    store: LocalStore,
    make_model: Fixture,
    small_recipe: Fixture,
    run_steps: Fixture,
    tmp_path: Path,
) -> None:
    source = make_model(tmp_path / "source", "llama")
    for name, key in (("config.json", "auto_map"), ("tokenizer_config.json", "custom_pipelines")):
        path = source / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | {key: {"AutoConfig": "evil/repo--x.Evil"}}))
    (source / "modeling_evil.py").write_text("raise SystemExit")
    made = run_steps(store, small_recipe(num_ranges=1), source)
    folder = made.export(tmp_path / "out")
    assert made.checkpoint.facts["removed"] == [
        "config.json: auto_map",
        "tokenizer_config.json: custom_pipelines",
    ]
    texts = [path.read_text() for path in folder.iterdir() if path.suffix == ".json"]
    assert not any("evil/repo" in text for text in texts)
    assert not list(folder.glob("*.py"))


def test_an_untied_head_is_kept(
    store: LocalStore,
    make_model: Fixture,
    small_recipe: Fixture,
    run_steps: Fixture,
    tmp_path: Path,
) -> None:
    source = make_model(tmp_path / "m", tie_word_embeddings=False, max_shard_size="100KB")
    assert (source / "model.safetensors.index.json").exists()
    folder = run_steps(store, small_recipe(), source).export(tmp_path / "out")
    checkpoint = Checkpoint.open(FolderSource(folder))
    original = Checkpoint.open(FolderSource(source))
    assert checkpoint.read("lm_head.weight") == original.read("lm_head.weight")


def test_ranges_must_fit_together(
    store: LocalStore, tiny_llama: Path, small_recipe: Fixture, run_steps: Fixture
) -> None:
    made = run_steps(store, small_recipe(num_ranges=4), tiny_llama)
    first, second, third, _ = made.quantized
    assert merge(store, made.recipe, made.model, made.quantized[::-1]) == made.checkpoint
    for ranges, message in (
        ([first, third], "range 2:3: starts at block 2, not 1"),
        ([first, first, second], "range 0:1: starts at block 0, not 1"),
        ([], "no range to merge"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            merge(store, made.recipe, made.model, ranges)
    other = run_steps(
        store, small_recipe(num_ranges=4, quantization={"method": "minmax"}), tiny_llama
    )
    with pytest.raises(InvalidInputError, match="different recipes"):
        merge(store, made.recipe, made.model, [first, *other.quantized[1:]])
