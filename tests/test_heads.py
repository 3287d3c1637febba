"""Heads and embeddings that are quantized: what is written, who reads it, what is refused."""

from __future__ import annotations

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
from quantlib.checks.recipe import parse_recipe
from quantlib.errors import InvalidInputError
from quantlib.evaluation.dry_load import dry_load
from quantlib.evaluation.transformers_engine import load_model
from quantlib.formats.dequantize import dequantized_state
from quantlib.models import open_model
from quantlib.quantizers import InputStatistics, quantizer_registry
from quantlib.steps.fetch import fetch
from quantlib.steps.texts import input_of
from quantlib.steps.validate import validate
from quantlib.steps.windows import read_windows
from quantlib.store import LocalStore, run_facts

Fixture = Callable[..., Any]

SIZES = {
    "initializer_range": 0.1,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VLLM = pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")


def head(scheme: str, **more: Any) -> dict[str, Any]:
    """A rule for the head alone."""
    return {"scheme": scheme, "linears": ["lm_head"], **more}


EMBEDDINGS = {"scheme": "W8A16", "linears": ["embeddings"], "group_size": 64}

ON_CPUS: dict[str, tuple[bool, dict[str, Any]]] = {
    "tied": (
        True,
        {"format": "compressed-tensors", "schemes": [head("W4A16", group_size=32)]},
    ),
    "of its own": (
        False,
        {"format": "compressed-tensors", "schemes": [head("W4A16_ASYM", group_size=64)]},
    ),
    "FP8": (True, {"schemes": [head("FP8_DYNAMIC")]}),
    "int8": (False, {"schemes": [head("W8A8")]}),
    "as the rest": (True, {"method": "minmax", "schemes": [head("W4A16", group_size=32)]}),
    "gptq": (False, {"format": "gptq", "schemes": [head("W4A16", group_size=32)]}),
    "gptq, of another size": (True, {"format": "gptq", "schemes": [head("W4A16", group_size=128)]}),
    "awq": (True, {"method": "awq", "format": "awq", "schemes": [head("W4A16", group_size=32)]}),
}
"""Whether the head was the embedding, and how it is quantized: what vLLM serves on CPUs."""


def llama(make_model: Fixture, folder: Path, tied: bool, **changes: Any) -> Path:
    return make_model(folder, "llama", tie_word_embeddings=tied, **SIZES | changes)


@pytest.mark.slow
@pytest.mark.vllm
@VLLM
def test_vllm_computes_what_the_quantizer_meant(
    make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    store, folders = LocalStore(tmp_path / "store"), []
    for number, (tied, quantization) in enumerate(ON_CPUS.values()):
        source = tmp_path / f"tied-{tied}"
        if not source.exists():
            llama(make_model, source, tied)
        made = run_steps(store, small_recipe(quantization=quantization), source)
        folders.append(made.export(tmp_path / str(number)))
    for folder, found in zip(folders, served_logprobs(folders, tmp_path), strict=True):
        assert_served_as_meant(found, reference_logprobs(folder), 0.03)


def test_the_head_is_calibrated_on_what_the_quantized_model_gives_it(
    make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    """Whose inputs transformers computes from the weights that the codes of the blocks mean."""
    source = llama(make_model, tmp_path / "source", True, dtype="float32")
    store = LocalStore(tmp_path / "store")
    recipe = small_recipe(
        quantization={"method": "gptq", "schemes": [head("W4A16", group_size=32)]}
    )
    made = run_steps(store, recipe, source)
    folder = made.export(tmp_path / "made")
    tokens = torch.from_numpy(read_windows(store, input_of(store, made.plan, "calibration")).tokens)
    section = recipe.quantization
    quantizer = quantizer_registry.get_quantizer("gptq")(
        section.of_scheme(section.schemes[0].linear_scheme())
    )
    codes = {}
    for name, given in (("made", folder), ("source", source)):
        model = load_model(given, torch.float32)
        seen: list[torch.Tensor] = []
        model.lm_head.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
        with torch.no_grad():
            model(tokens)
        (x,) = (each.flatten(0, 1) for each in seen)
        hessian = x.t() @ x / len(x)
        weight = read_tensor(Checkpoint.open(FolderSource(source)), "model.embed_tokens.weight")
        weights = {"lm_head": weight.float()}
        linears = quantizer.quantize(weights, InputStatistics(hessian), torch.float32).linears
        codes[name] = linears["lm_head"].dequantize()
    written = dict(dequantized_state(Checkpoint.open(FolderSource(folder))))["lm_head.weight"]
    same = {name: float((written == each).double().mean()) for name, each in codes.items()}
    assert same["made"] > 0.99
    assert same["source"] < 0.98


def judged(
    engine: str, rules: list[dict[str, Any]], tools: tuple[Fixture, Fixture, Fixture], folder: Path
) -> tuple[float, float]:
    """The KL divergence of a model with such rules as it is judged, and by transformers alone."""
    make_model, small_recipe, run_steps = tools
    source, store = llama(make_model, folder / "source", True), LocalStore(folder / "store")
    recipe = small_recipe(
        quantization={"schemes": rules},
        validation={"engine": engine, "prompts": ["A"], "max_new_tokens": 4, "max_samples": 4},
    )
    made = run_steps(store, recipe, source)
    validation = validate(store, recipe, made.model, made.plan, made.checkpoint, "cpu")
    windows = read_windows(store, input_of(store, made.plan, "evaluation"))
    tokens = torch.from_numpy(windows.tokens)
    with torch.no_grad():
        reference, candidate = (
            load_model(given, torch.float32)(tokens).logits[:, :-1].double().log_softmax(-1)
            for given in (source, made.export(folder / "made"))
        )
    kl = (reference.exp() * (reference - candidate)).sum(-1)
    return validation.facts["kl_mean"], float(kl[torch.from_numpy(windows.predicted)].mean())


def test_a_quantized_head_is_judged_against_the_original_one(
    make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    tools = make_model, small_recipe, run_steps
    found, expected = judged("transformers", [head("W2A16", group_size=32)], tools, tmp_path)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.vllm
@VLLM
@pytest.mark.usefixtures("shared_engines")
@pytest.mark.parametrize(
    "rules",
    [
        [head("W4A16", group_size=32)],
        [head("W8A16", group_size=32)],
        [head("FP8")],
        [head("FP8_DYNAMIC")],
        [head("NVFP4")],
        [EMBEDDINGS],
        [head("FP8"), {**EMBEDDINGS, "scheme": "W4A16"}],
    ],
    ids=lambda rules: "-".join(rule["scheme"] for rule in rules),
)
def test_vllm_judges_a_quantized_head(
    rules: list[dict[str, Any]],
    make_model: Fixture,
    small_recipe: Fixture,
    run_steps: Fixture,
    tmp_path: Path,
) -> None:
    """By its kernel, or by emulation where there is none; products in bfloat16."""
    found, expected = judged("vllm", rules, (make_model, small_recipe, run_steps), tmp_path)
    assert found == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_untied_and_the_embedding_stays_what_it_was(
    tied: bool, make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    source = llama(make_model, tmp_path / "source", tied)
    rules = [head("W8A16", group_size=32)]
    recipe = small_recipe(quantization={"format": "compressed-tensors", "schemes": rules})
    made = run_steps(LocalStore(tmp_path / "store"), recipe, source)
    checkpoint = Checkpoint.open(FolderSource(made.export(tmp_path / "made")))
    original = Checkpoint.open(FolderSource(source))
    assert checkpoint.config["tie_word_embeddings"] is False
    embedding = "model.embed_tokens.weight"
    assert checkpoint.read(embedding) == original.read(embedding)
    assert "lm_head.weight" not in checkpoint.tensors
    restored = dict(dequantized_state(checkpoint))["lm_head.weight"].float()
    weight = read_tensor(original, embedding if tied else "lm_head.weight").float()
    assert 0 < (restored - weight).norm() / weight.norm() < 0.01
    parts = {(each["part"], each["scheme"]): each for each in made.checkpoint.facts["parts"]}
    written = parts["head", "W8A16 in groups of 32"]
    assert (written["linears"], written["weights"]) == (1, 512 * 128)
    assert written["bytes"] == 512 * 128 + 2 * 512 * 4 + 16
    receipts = (made.checkpoint, *made.quantized)
    remarks = str([run_facts(made.store, receipt).get("remarks") for receipt in receipts])
    assert ("lm_head was model.embed_tokens" in remarks) == tied
    assert "lm_head is W8A16 in groups of 32, with a relative error of its output of" in remarks


def test_compressed_tensors_reads_the_head_and_the_embedding(
    make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    """By its own matching of names, and its decompression."""
    source = llama(make_model, tmp_path / "source", True)
    rules = [head("FP8"), EMBEDDINGS]
    made = run_steps(
        LocalStore(tmp_path / "store"), small_recipe(quantization={"schemes": rules}), source
    )
    folder = made.export(tmp_path / "made")
    checkpoint = Checkpoint.open(FolderSource(folder))
    parsed = QuantizationConfig.model_validate(checkpoint.config["quantization_config"])
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    apply_quantization_config(model, parsed)
    plain = dict(dequantized_state(checkpoint))
    for module, expected in (("lm_head", (8, "float")), ("model.embed_tokens", (8, "int"))):
        scheme = model.get_submodule(module).quantization_scheme
        assert (scheme.weights.num_bits, scheme.weights.type) == expected
        stored = {
            name.rpartition(".")[2]: read_tensor(checkpoint, name)
            for name in checkpoint.tensors
            if name.startswith(f"{module}.")
        }
        compressor = BaseCompressor.get_value_from_registry(scheme.format)
        restored = compressor.decompress(stored, scheme)["weight"]
        torch.testing.assert_close(
            restored.float(), plain[f"{module}.weight"].float(), rtol=2**-7, atol=0
        )


def test_an_embedding_alone_leaves_an_exact_head_of_its_own(
    make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    source = llama(make_model, tmp_path / "source", True)
    recipe = small_recipe(quantization={"schemes": [EMBEDDINGS]})
    made = run_steps(LocalStore(tmp_path / "store"), recipe, source)
    checkpoint = Checkpoint.open(FolderSource(made.export(tmp_path / "made")))
    original = Checkpoint.open(FolderSource(source))
    assert checkpoint.read("lm_head.weight") == original.read("model.embed_tokens.weight")
    assert checkpoint.config["tie_word_embeddings"] is False
    assert "lm_head" in checkpoint.config["quantization_config"]["ignore"]
    restored = dict(dequantized_state(checkpoint))["model.embed_tokens.weight"].float()
    weight = read_tensor(original, "model.embed_tokens.weight").float()
    assert 0 < (restored - weight).norm() / weight.norm() < 0.01


def test_three_ranges_write_what_one_does(
    make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    """The last block is exact, and the tokens go through it to the head all the same."""
    source = llama(make_model, tmp_path / "source", True, num_hidden_layers=4)
    store, layouts = LocalStore(tmp_path / "store"), []
    rules = [head("W4A16", group_size=32), {"scheme": "exact", "blocks": [-1]}]
    for ranges in (1, 3):
        recipe = small_recipe(quantization={"schemes": rules}, num_ranges=ranges)
        made = run_steps(store, recipe, source)
        assert made.plan.facts["ranges"][-1].endswith(":4")
        checkpoint = Checkpoint.open(FolderSource(made.export(tmp_path / str(ranges))))
        tensors = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
        layouts.append((checkpoint.config, tensors))
    assert layouts[0] == layouts[1]


def test_a_size_that_a_rule_leaves_open_fits_the_head(make_model: Fixture, tmp_path: Path) -> None:
    source = llama(make_model, tmp_path / "source", False, hidden_size=192, head_dim=32)
    adapter = open_model(FolderSource(source))[1]
    asked = parse_recipe({"quantization": {"schemes": [head("W8A16")]}})
    settled = settle(asked, adapter)
    assert settled.recipe.quantization.schemes[0].group_size == 64
    assert "128 does not divide lm_head (192)" in settled.said


@pytest.mark.parametrize(
    ("quantization", "model", "expected"),
    [
        (
            {"schemes": [head("FP8_BLOCK")]},
            {},
            "vLLM reads no scales of blocks of a head's rows; use FP8 or FP8_DYNAMIC",
        ),
        (
            {"format": "gptq", "schemes": [head("W4A16", group_size=32)]},
            {"vocab_size": 513},
            "multiple of 64, and 513 tokens are none, which it can in compressed-tensors only",
        ),
        (
            {"schemes": [head("W4A16_ASYM", group_size=32)]},
            {"vocab_size": 513},
            "where 8 divides the vocabulary, 513; use symmetric weights",
        ),
        (
            {"schemes": [head("W4A16", group_size=32)], "ignore": ["lm_head"]},
            {},
            "quantization.schemes.0: ignore names all that it is for",
        ),
        (
            {"schemes": [head("W8A8"), head("W4A16", group_size=32)]},
            {},
            "quantization.schemes.1: rules before it name all of its linears",
        ),
        (
            {"schemes": [head("W4A16", group_size=32)]},
            {"model_type": "gemma2"},
            "vLLM reads no codes of lm_head of Gemma2ForCausalLM",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(
    quantization: dict[str, Any],
    model: dict[str, Any],
    expected: str,
    make_model: Fixture,
    small_recipe: Fixture,
    tmp_path: Path,
) -> None:
    family = model.get("model_type", "llama")
    changes = {name: value for name, value in model.items() if name != "model_type"}
    source = make_model(tmp_path / "source", family, **SIZES | changes)
    recipe = small_recipe(quantization=quantization)
    found = [str(problem) for problem in input_problems(recipe, FolderSource(source))]
    assert any(expected in each for each in found), found


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (
            {"format": "gptq", "schemes": [EMBEDDINGS]},
            "gptq cannot hold this: embeddings: vLLM reads quantized embeddings in compressed-",
        ),
        (
            {"schemes": [{"scheme": "FP8_DYNAMIC", "linears": ["embeddings"]}]},
            "embeddings: vLLM looks up whole numbers, symmetric and with 16-bit activations, only",
        ),
    ],
)
def test_embeddings_that_cannot_be_read_are_refused(
    quantization: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        parse_recipe({"quantization": quantization})


def test_the_head_lies_in_no_block() -> None:
    with pytest.raises(InvalidInputError, match="leave blocks out: lm_head lie in no block"):
        parse_recipe({"quantization": {"schemes": [head("W8A8", blocks=[0])]}})


@pytest.mark.vllm
@VLLM
@pytest.mark.parametrize(
    "schemes",
    [
        [head("W8A16", group_size=64), EMBEDDINGS],
        [head("FP8")],
        [EMBEDDINGS],
    ],
    ids=lambda rules: "-".join(rule["scheme"] for rule in rules),
)
def test_vllm_builds_what_it_serves_on_gpus(
    schemes: list[dict[str, Any]], make_model: Fixture, small_recipe: Fixture, tmp_path: Path
) -> None:
    source, store = llama(make_model, tmp_path / "source", True), LocalStore(tmp_path / "store")
    recipe = small_recipe(quantization={"schemes": schemes})
    model = fetch(store, str(source))
    checkpoint, adapter = open_model(ReceiptSource(store, model))
    said = dry_load(store, recipe.quantization, model, checkpoint, adapter, {})
    assert "by names and shapes where it has no kernel" in said


def test_configs_name_the_head_as_vllm_does(make_model: Fixture, tmp_path: Path) -> None:
    """Beside its name on disk, where vLLM asks for it by another."""
    from quantlib.models.fusion import vllm_names

    names = vllm_names("Gemma3ForConditionalGeneration")
    assert names is not None
    assert names.outer("lm_head") == ("lm_head", "language_model.lm_head")
    llama_names = vllm_names("LlamaForCausalLM")
    assert llama_names is not None
    assert (llama_names.outer("lm_head"), llama_names.outer("embeddings")) == (
        ("lm_head",),
        ("Embedding",),
    )
