"""Keys and values in FP8: their scales, what reads them, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from problems import input_problems
from serving import TOKENS, assert_served_as_meant, reference_logprobs, served_logprobs
from test_mixed_schemes import llama_with
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource, ReceiptSource
from quantlib.checkpoint.tensors import read_tensor
from quantlib.checks.recipe import parse_recipe
from quantlib.checks.scheme import provisional_section, resolve_format
from quantlib.conversion import convert
from quantlib.errors import InvalidInputError
from quantlib.evaluation.dry_load import dry_load
from quantlib.evaluation.original import make_plain
from quantlib.evaluation.transformers_engine import load_model
from quantlib.formats.dequantize import dequantized_state
from quantlib.models import open_model
from quantlib.steps.fetch import fetch
from quantlib.steps.texts import input_of
from quantlib.steps.windows import read_windows
from quantlib.store import LocalStore

Fixture = Callable[..., Any]

EXACT = {"method": "minmax", "schemes": [{"scheme": "exact"}], "kv_cache": "fp8"}
PARTS = {"k": "keys", "v": "values"}

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")


class RoundingCache(DynamicCache):
    """transformers' own cache, which keeps what FP8 numbers of torch's stand for."""

    scales: Mapping[str, Tensor]

    def update(self, keys: Tensor, values: Tensor, layer: int, *rest: Any, **more: Any) -> Any:
        rounded = []
        for part, x in (("k", keys), ("v", values)):
            scale = self.scales[f"model.layers.{layer}.self_attn.{part}_scale"]
            codes = (x.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
            rounded.append((codes.float() * scale).to(x.dtype))
        return super().update(*rounded, layer, *rest, **more)


def scales_of(folder: Path) -> dict[str, Tensor]:
    checkpoint = Checkpoint.open(FolderSource(folder))
    names = [
        name for name in checkpoint.tensors if name.endswith(("k_scale", "v_scale", "q_scale"))
    ]
    return {name: read_tensor(checkpoint, name) for name in names}


def plain_model(folder: Path, state: Mapping[str, Tensor] | None = None) -> Any:
    """The model of a folder by transformers alone, in float32."""
    config = AutoConfig.from_pretrained(folder)
    if state is None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing = model.load_state_dict({name: each.float() for name, each in state.items()}, False)
    assert not missing.unexpected_keys
    return model.eval()


@torch.no_grad()
def largest_cached(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    """The largest magnitudes per head of what transformers' own cache keeps, by layer and part."""
    found: dict[str, Tensor] = {}
    for window in tokens:
        cache = model(window[None], use_cache=True).past_key_values
        for number, layer in enumerate(cache.layers):
            for part, name in PARTS.items():
                kept = getattr(layer, name, None)
                if isinstance(kept, Tensor) and kept.numel():
                    largest = kept.abs().amax((0, 2, 3))
                    key = f"{number}.{part}"
                    found[key] = torch.maximum(found.get(key, largest), largest)
    return found


def calibration_tokens(made: Any) -> Tensor:
    windows = read_windows(made.store, input_of(made.store, made.plan, "calibration"))
    return torch.from_numpy(windows.tokens)


def by_layer(scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scales by the number of their layer and what they are of: ``3.k``."""
    found = {}
    for name, scale in scales.items():
        number, part = re.search(r"layers\.(\d+)\..*\.([kvq])_scale$", name).groups()
        found[f"{number}.{part}"] = scale
    return found


@pytest.mark.usefixtures("float32_products")
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3_moe", "qwen3_next", "nemotron_h"])
def test_scales_are_of_what_transformers_caches(
    family: str, per_head: bool, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    source = zoo.make(family, tmp_path / "source")
    kv_cache = "fp8-head" if per_head else "fp8"
    recipe = small_recipe(quantization=EXACT | {"kv_cache": kv_cache})
    made = run_steps(LocalStore(tmp_path / "store"), recipe, source)
    found = by_layer(scales_of(made.export(tmp_path / "made")))
    largest = largest_cached(plain_model(source), calibration_tokens(made))
    assert found.keys() == largest.keys()
    for name, per_kept in largest.items():
        wanted = per_kept[:, None, None] if per_head else per_kept.max().reshape(1)
        torch.testing.assert_close(found[name], wanted / 448, rtol=1e-4, atol=1e-7)


@pytest.mark.usefixtures("float32_products")
@pytest.mark.parametrize("family", ["gemma3n", "gemma4_e2b"])
def test_layers_that_share_keys_share_scales(
    family: str, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    """The layer that attends reads the cache of the one that fills it by its own scales."""
    source = zoo.make(family, tmp_path / "source")
    made = run_steps(LocalStore(tmp_path / "store"), small_recipe(quantization=EXACT), source)
    found = by_layer(scales_of(made.export(tmp_path / "made")))
    config = json.loads((source / "config.json").read_text())
    config = config.get("text_config", config)
    kinds, first = config["layer_types"], len(config["layer_types"])
    first -= config["num_kv_shared_layers"]
    assert 0 < first < len(kinds)
    for number in range(first, len(kinds)):
        filled_by = max(other for other in range(first) if kinds[other] == kinds[number])
        for part in PARTS:
            assert torch.equal(found[f"{number}.{part}"], found[f"{filled_by}.{part}"])


def test_queries_have_a_scale_per_head_of_theirs(
    make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    source = llama_with(make_model, tmp_path / "source")
    asked = EXACT | {"kv_cache": "fp8-head", "attention": "fp8"}
    made = run_steps(LocalStore(tmp_path / "store"), small_recipe(quantization=asked), source)
    folder = made.export(tmp_path / "made")
    shapes = {name.rpartition(".")[2]: each.shape for name, each in scales_of(folder).items()}
    assert shapes == {"k_scale": (2, 1, 1), "v_scale": (2, 1, 1), "q_scale": (4, 1, 1)}
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    assert group["targets"] == ["LlamaAttention"]


@pytest.mark.parametrize(
    "quantization",
    [
        {"method": "gptq", "weights": {"group_size": 32}},
        {
            "method": "minmax",
            "weights": {"type": "float", "bits": 8, "group_size": -1},
            "activations": "fp8",
        },
        {"method": "minmax", "schemes": [{"scheme": "exact"}]},
    ],
)
def test_scales_do_not_depend_on_the_ranges(
    quantization: dict[str, Any],
    make_model: Fixture,
    small_recipe: Fixture,
    run_steps: Fixture,
    tmp_path: Path,
) -> None:
    source, store = llama_with(make_model, tmp_path / "source"), LocalStore(tmp_path / "store")
    asked = quantization | {"kv_cache": "fp8-head", "attention": "fp8"}
    found = []
    for ranges in (1, 3):
        recipe = small_recipe(quantization=asked, num_ranges=ranges)
        made = run_steps(store, recipe, source)
        assert len(made.quantized) == ranges
        found.append(scales_of(made.export(tmp_path / str(ranges))))
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == 4 * 3
    for name, scale in found[0].items():
        assert torch.equal(scale, found[1][name]), name


@pytest.mark.usefixtures("float32_products")
@pytest.mark.parametrize("method", ["awq", "smooth_quant"])
def test_values_have_the_scale_that_folding_leaves_them(
    method: str, make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    """Scales of the input of o_proj are folded into v_proj: smaller values are cached."""
    source = llama_with(make_model, tmp_path / "source", dtype="float32")
    if method == "awq":
        changes: dict[str, Any] = {"quantization": {"method": "awq", "weights": {"group_size": 32}}}
    else:
        eight = {"method": "minmax", "weights": {"bits": 8, "group_size": -1}}
        pairs = {"method": method, "options": {"pairs": ["value_output"]}}
        changes = {"quantization": eight | {"activations": "int8"}, "outlier_suppression": pairs}
    changes["quantization"]["kv_cache"] = "fp8-head"
    made = run_steps(LocalStore(tmp_path / "store"), small_recipe(**changes), source)
    folder = made.export(tmp_path / "made")
    state = dict(dequantized_state(Checkpoint.open(FolderSource(folder))))
    tokens = calibration_tokens(made)
    kept = largest_cached(plain_model(folder, state), tokens)
    before = largest_cached(plain_model(source), tokens)
    changed = 0
    for name, scale in by_layer(scales_of(folder)).items():
        off = (scale.flatten() * 448 / kept[name]).log().abs().max().item()
        assert off < 0.3, f"{name}: {off}"
        changed += int((before[name] / kept[name]).log().abs().max().item() > 0.4)
    assert changed or method == "awq", "nothing was folded, so this test could not fail"


@torch.no_grad()
@pytest.mark.parametrize("per_head", [False, True])
def test_transformers_judges_what_is_kept(
    per_head: bool, make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    """The evaluation engine against a cache that rounds what it is given."""
    source = llama_with(make_model, tmp_path / "source")
    asked = EXACT | {"kv_cache": "fp8-head" if per_head else "fp8"}
    made = run_steps(LocalStore(tmp_path / "store"), small_recipe(quantization=asked), source)
    folder = made.export(tmp_path / "made")
    tokens = torch.tensor([TOKENS])
    judged = load_model(folder, torch.float32)(tokens, use_cache=False).logits
    plain = plain_model(source)
    cache = RoundingCache(config=plain.config)
    cache.scales = scales_of(folder)
    expected = plain(tokens, past_key_values=cache).logits
    torch.testing.assert_close(judged, expected, rtol=1e-3, atol=1e-3)
    assert (judged - plain(tokens).logits).abs().max() > 0.05


def test_compressed_tensors_reads_the_scales(
    make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    """Its own loader, by way of transformers: of weights in codes, and of exact ones."""
    store = LocalStore(tmp_path / "store")
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    sources = {
        "llama": llama_with(make_model, tmp_path / "llama"),
        "qwen3_moe": make_model(tmp_path / "moe", "qwen3_moe", **moe),
    }
    for family, source in sources.items():
        asked = {"kv_cache": "fp8", "attention": "fp8"}
        if family == "qwen3_moe":
            asked |= EXACT
        else:
            asked |= {"method": "minmax", "activations": "int8"}
            asked["weights"] = {"bits": 8, "group_size": -1}
        made = run_steps(store, small_recipe(quantization=asked), source)
        folder = made.export(tmp_path / f"made-{family}")
        model = AutoModelForCausalLM.from_pretrained(folder)
        for name, scale in scales_of(folder).items():
            module, _, part = name.rpartition(".")
            read = getattr(model.get_submodule(module), part)
            torch.testing.assert_close(read.float(), scale, rtol=2**-8, atol=0)
            arguments = model.get_submodule(module).quantization_scheme.input_activations
            assert (arguments.num_bits, str(arguments.type), arguments.dynamic) == (
                8,
                "float",
                False,
            )


def test_a_checkpoint_of_exact_weights_is_read_again(
    make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    source = llama_with(make_model, tmp_path / "source")
    made = run_steps(LocalStore(tmp_path / "store"), small_recipe(quantization=EXACT), source)
    folder = made.export(tmp_path / "made")
    original, read = (open_model(FolderSource(each))[0] for each in (source, folder))
    assert read.tensors.keys() == original.tensors.keys()
    assert "quantization_config" not in read.config
    assert made.checkpoint.facts["quantized_blocks"] == []


def test_judging_dequantized_weights_may_keep_the_cache(
    make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    source = llama_with(make_model, tmp_path / "source")
    weights = {"method": "minmax", "weights": {"group_size": 32}}
    recipe = small_recipe(quantization=weights | {"kv_cache": "fp8"})
    folder = run_steps(LocalStore(tmp_path / "store"), recipe, source).export(tmp_path / "made")
    scales, meant = scales_of(folder), reference_logprobs(folder)
    shutil.copytree(folder, tmp_path / "plain")
    make_plain(folder, cached=True)
    assert scales_of(folder).keys() == scales.keys()
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["config_groups"] == {}
    assert (abs(reference_logprobs(folder) - meant) < 1e-3).all()
    make_plain(tmp_path / "plain")
    assert not scales_of(tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.vllm
@needs_vllm
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_vllm_keeps_what_was_meant(
    family: str, make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    """Per layer as vLLM does it on CPUs; per head and with queries by what corrects it."""
    counts = {"num_local_experts": 4} if family == "mixtral" else {}
    sizes = {"num_key_value_heads": 2, "num_attention_heads": 4, "hidden_size": 128}
    source = make_model(tmp_path / "source", family, **sizes, **counts)
    # Heads of different sizes, so that a scale for all of them is another one.
    store, folders = LocalStore(tmp_path / "store"), []
    for kv_cache in ("fp8", "fp8-head"):
        asked = EXACT | {"kv_cache": kv_cache, "attention": "none"}
        made = run_steps(store, small_recipe(quantization=asked), source)
        folders.append(made.export(tmp_path / kv_cache))
    corrected = "from quantlib.evaluation.vllm_cpu_worker import correct_kernels; correct_kernels()"
    # In 16 bits keys fall on other sides of FP8's steps, which tells little models much.
    served = served_logprobs(folders, tmp_path, corrected, float32=folders)
    for folder, found in zip(folders, served, strict=True):
        assert_served_as_meant(found, reference_logprobs(folder), 2e-3)


@pytest.mark.vllm
@needs_vllm
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3n"])
def test_vllm_takes_the_scales_of_every_layer(
    family: str, small_recipe: Fixture, tmp_path: Path
) -> None:
    store, source = LocalStore(tmp_path / "store"), zoo.make(family, tmp_path / "source")
    model = fetch(store, str(source))
    checkpoint, adapter = open_model(ReceiptSource(store, model))
    asked = EXACT | {"kv_cache": "fp8-head", "attention": "fp8"}
    section = small_recipe(quantization=asked).quantization
    said = dry_load(store, section, model, checkpoint, adapter, {})
    assert "loaded the model with dummy weights" in said


@pytest.mark.parametrize(
    ("family", "quantization", "expected"),
    [
        ("deepseek_v3", {"kv_cache": "fp8"}, "DeepseekV3Attention keeps one vector"),
        ("kimi_linear", {"kv_cache": "fp8"}, "--kv-cache-dtype fp8"),
        ("gemma4_moe", {"kv_cache": "fp8-head"}, "different numbers of key-value heads (1, 2)"),
    ],
)
def test_what_vllm_takes_no_scales_for_is_refused(
    family: str,
    quantization: dict[str, Any],
    expected: str,
    small_recipe: Fixture,
    tmp_path: Path,
) -> None:
    source = zoo.make(family, tmp_path / "source")
    recipe = small_recipe(quantization=quantization)
    found = [str(problem) for problem in input_problems(recipe, FolderSource(source))]
    assert any(each.startswith("quantization.kv_cache") and expected in each for each in found)


@pytest.mark.parametrize(
    ("quantization", "where", "expected"),
    [
        ({"kv_cache": "fp8", "format": "gptq"}, "format", "use compressed-tensors"),
        ({"kv_cache": "fp8", "format": "awq", "method": "awq"}, "format", "use compressed-tensors"),
        ({"attention": "fp8"}, "attention", "kv_cache is none"),
        ({"kv_cache": "fp4"}, "kv_cache", "fp8-head"),
    ],
)
def test_recipes_that_cannot_work_are_refused(
    quantization: dict[str, Any], where: str, expected: str
) -> None:
    with pytest.raises(InvalidInputError) as refused:
        parse_recipe({"quantization": quantization})
    (problem,) = refused.value.problems
    assert f"quantization.{where}" in problem.where
    assert expected in str(problem)


def test_the_format_is_one_that_can_say_it() -> None:
    section = parse_recipe({"quantization": {"method": "awq", "kv_cache": "fp8"}}).quantization
    assert resolve_format(provisional_section(section)) == "compressed-tensors"


def test_a_cache_is_not_converted_away(
    make_model: Fixture, small_recipe: Fixture, run_steps: Fixture, tmp_path: Path
) -> None:
    source = llama_with(make_model, tmp_path / "source")
    asked = {"method": "minmax", "weights": {"group_size": 32}, "kv_cache": "fp8"}
    made = run_steps(LocalStore(tmp_path / "store"), small_recipe(quantization=asked), source)
    folder = made.export(tmp_path / "made")
    with pytest.raises(InvalidInputError, match="it says nothing of keys and values"):
        convert(folder, tmp_path / "gptq", "gptq")
