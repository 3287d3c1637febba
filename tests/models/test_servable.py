"""Models in another dress: names with another prefix, configs that leave things out."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from problems import input_problems
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from quantlib.checkpoint.source import FolderSource
from quantlib.checkpoint.tensors import read_tensor
from quantlib.evaluation.original import make_servable
from quantlib.models import open_model
from quantlib.recipe import Recipe
from quantlib.steps.calibrate import calibrate
from quantlib.steps.fetch import fetch
from quantlib.steps.merge import merge
from quantlib.steps.plan import plan
from quantlib.steps.quantize import quantize
from quantlib.steps.smooth import smooth
from quantlib.steps.texts import bring_texts
from quantlib.store import LocalStore

MakeModel = Callable[..., Path]
MakeRecipe = Callable[..., Recipe]


def redressed(folder: Path, prefix: str, head: str = "", **config: object) -> Path:
    """A model with ``prefix`` in place of ``model.``, and ``head`` in front of the head's name."""
    state = load_file(folder / "model.safetensors")
    state = {
        prefix + name.removeprefix("model.") if name.startswith("model.") else head + name: tensor
        for name, tensor in state.items()
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, **config)
    return folder


def renamed_in(folder: Path) -> Mapping[str, tuple[str, ...]]:
    _, adapter = open_model(FolderSource(folder))
    return adapter.layout.renamed


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value != ...}))


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("", ""),
        ("language_model.model.", "language_model."),
        ("model.language_model.", ""),
        ("base_model.model.model.", "base_model.model."),
        ("module.model.", "module."),
    ],
)
@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
def test_other_prefixes_are_read(
    make_model: MakeModel, tmp_path: Path, prefix: str, head: str, model_type: str
) -> None:
    more = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    folder = make_model(
        tmp_path / "m",
        model_type,
        **(more if model_type == "qwen3_moe" else {}),
        tie_word_embeddings=False,
    )
    wanted, _ = open_model(FolderSource(folder))
    redressed(folder, prefix, head)
    checkpoint, adapter = open_model(FolderSource(folder))
    assert checkpoint.tensors.keys() == wanted.tensors.keys()
    name = f"{adapter.linear_name(1, 'self_attn.q_proj')}.weight"
    assert checkpoint.info(name).name.startswith(prefix)


def test_what_is_written_is_what_vllm_knows(
    make_model: MakeModel, small_recipe: MakeRecipe, store: LocalStore, tmp_path: Path
) -> None:
    """As ``language_model.save_pretrained()`` of a Gemma 3 leaves it."""
    folder = make_model(tmp_path / "m", "gemma3_text", query_pre_attn_scalar=32)
    reference = AutoModelForCausalLM.from_pretrained(folder)
    redressed(folder, "", architectures=["Gemma3TextModel"])
    recipe = small_recipe(quantization={"method": "minmax", "layers": [1]})
    model = fetch(store, str(folder))
    planned = plan(store, recipe, model, bring_texts(store, recipe), 1)
    calibrated = calibrate(store, recipe, model, planned, "cpu")
    smoothed = smooth(store, recipe, model, calibrated)
    ranges = [
        quantize(store, recipe, part, model, calibrated, smoothed, "cpu")
        for part in planned.facts["ranges"]
    ]
    checkpoint = merge(store, recipe, model, ranges)
    config = json.loads(store.read(checkpoint.path("config.json")))
    assert config["architectures"] == ["Gemma3ForCausalLM"]
    index = json.loads(store.read(checkpoint.path("model.safetensors.index.json")))
    kept = {name for name in reference.state_dict() if "layers.1." not in name}
    assert kept - {"lm_head.weight"} <= index["weight_map"].keys()
    assert all(name.startswith("model.") for name in index["weight_map"])

    make_servable(folder, renamed_in(folder))
    state = load_file(folder / "model.safetensors")
    assert torch.equal(state["model.norm.weight"], reference.state_dict()["model.norm.weight"])
    assert all(name.startswith("model.") for name in state)
    assert json.loads((folder / "config.json").read_text())["architectures"] == [
        "Gemma3ForCausalLM"
    ]


def test_links_are_replaced_and_not_written_through(make_model: MakeModel, tmp_path: Path) -> None:
    folder = redressed(make_model(tmp_path / "m"), "", architectures=["LlamaModel"])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    make_servable(linked, renamed_in(linked))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert (linked / "tokenizer.json").is_symlink()
    assert "model.norm.weight" in load_file(linked / "model.safetensors")


def test_a_model_that_needs_nothing_is_left_alone(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    make_servable(folder, renamed_in(folder))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("empty", [None, {}, {"quant_method": "none"}])
def test_a_config_that_says_nothing_of_quantization_and_dtype(
    make_model: MakeModel, small_recipe: MakeRecipe, tmp_path: Path, empty: object
) -> None:
    folder = make_model(tmp_path / "m", dtype="float16")
    edit_config(folder, dtype=..., architectures=..., quantization_config=empty)
    source = FolderSource(folder)
    assert input_problems(small_recipe(), source) == []
    _, adapter = open_model(source)
    assert "quantization_config" not in adapter.config
    assert adapter.config["torch_dtype"] == "float16"
    assert adapter.layout.renamed == {}
    make_servable(folder, renamed_in(folder))
    written = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in written
    assert written["architectures"] == ["LlamaForCausalLM"]


def test_a_foreign_checkpoint_is_one_line_and_not_hundreds(
    make_model: MakeModel, small_recipe: MakeRecipe, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    save_file(
        {name.replace(".", "_"): tensor for name, tensor in state.items()},
        folder / "model.safetensors",
    )
    (problem,) = input_problems(small_recipe(), FolderSource(folder))
    assert "model.embed_tokens.weight: the checkpoint has no such tensor" in str(problem)
    assert "and so with 38 more: " in str(problem)
    assert "it holds lm_head_weight, model_embed_tokens_weight, " in str(problem)


def test_a_base_model_has_no_head(
    make_model: MakeModel, small_recipe: MakeRecipe, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "m", tie_word_embeddings=False)
    redressed(folder, "")
    state = load_file(folder / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors")
    (problem,) = input_problems(small_recipe(), FolderSource(folder))
    assert "as is usual without the prefix 'model.' (it holds embed_tokens.weight)" in str(problem)
    assert "set tie_word_embeddings to true" in str(problem)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_experts_that_are_stored_as_transformers_has_them_in_memory(
    make_model: MakeModel, tmp_path: Path, model_type: str
) -> None:
    """They are read by the names that the family has on the hub, which are those of vLLM."""
    hub = make_model(tmp_path / "hub", model_type)
    memory = make_model(tmp_path / "memory", model_type, stacked_experts=True)
    assert len(load_file(memory / "model.safetensors")) < len(load_file(hub / "model.safetensors"))
    wanted, found = (open_model(FolderSource(folder)) for folder in (hub, memory))
    assert found[1].layout.kinds == wanted[1].layout.kinds
    tensors = load_file(hub / "model.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(read_tensor(found[0], name), tensor), name
    make_servable(memory, renamed_in(memory))
    served = load_file(memory / "model.safetensors")
    assert served.keys() == tensors.keys()
    assert all(torch.equal(served[name], tensor) for name, tensor in tensors.items())
