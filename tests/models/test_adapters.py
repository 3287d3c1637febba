"""What an adapter knows of a model, and what it says where a model cannot be taken."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import zoo
from recipes import settled_recipe
from safetensors.torch import load_file, save_file

from quantlib.checkpoint.source import FolderSource
from quantlib.checks.model import model_problems
from quantlib.errors import InvalidInputError
from quantlib.models import BaseHuggingFaceAdapter, BaseModelAdapter, open_model
from quantlib.models.layout import BlockKind, Layout, Producer, SharedInput

MakeModel = Callable[..., Path]
CALIBRATED = settled_recipe({"quantization": {"weights": {"group_size": 32}}})
WITHOUT_TEXT = "quantize without text: --method minmax, --recipe fp8, or method hqq with options "


def adapter_of(folder: Path) -> BaseModelAdapter:
    return open_model(FolderSource(folder))[1]


def refused(folder: Path, changes: Mapping[str, Any]) -> list[str]:
    """What is said of a model whose config is changed; ``...`` removes a field."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value != ...}))
    try:
        checkpoint, adapter = open_model(FolderSource(folder))
    except InvalidInputError as error:
        return [str(problem) for problem in error.problems]
    return [str(problem) for problem in model_problems(CALIBRATED, checkpoint, adapter)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": ...}, "config.json: model_type: is missing"),
        ({"model_type": "mambo", "architectures": ["Mambo"]}, " does not know 'mambo'"),
        (
            {"model_type": "mambo", "architectures": [], "auto_map": {"AutoConfig": "x--y.Z"}},
            "does not know 'mambo', and its code is not part of transformers",
        ),
        ({"model_type": "t5", "architectures": ["T5Model"]}, "'t5' is an encoder and a decoder"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "class of 'vit' that gives logits"),
        ({"hidden_size": "64"}, "config.json: transformers refuses it: "),
        ({"hidden_size": None}, "config.json: transformers "),
        ({"hidden_act": "relu7"}, "transformers cannot build LlamaForCausalLM: "),
        ({"rope_scaling": [1]}, "config.json: transformers "),
    ],
)
def test_a_config_that_transformers_does_not_take_is_one_line(
    make_model: MakeModel, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    (line,) = refused(make_model(tmp_path / "m"), changes)
    assert said in line
    assert WITHOUT_TEXT in line or changes == {"model_type": ...}


def test_missing_and_misshapen_tensors(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    found = refused(folder, {"num_hidden_layers": 5, "vocab_size": 500})
    assert "model.embed_tokens.weight: has shape [512, 64]; the config says [500, 64]" in found
    missing = "model.layers.4.self_attn.q_proj.weight: the checkpoint has no such tensor"
    (line,) = (line for line in found if line.startswith(missing))
    assert "and so with 8 more: model.layers.4.self_attn.k_proj.weight, " in line
    assert "it holds " in line


def test_tensors_that_a_family_does_not_have(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", attention_bias=True, tie_word_embeddings=True)
    assert adapter_of(folder).blocks == 4
    (line,) = refused(folder, {"attention_bias": False})
    assert (
        "bias: is no tensor that a block of llama with this config has, and so with 15 more" in line
    )
    found = refused(folder, {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]})
    assert "model.layers.0.self_attn.q_norm.weight: the checkpoint has no such tensor" in found[0]
    assert "bias: is no tensor that a block of qwen3 with this config has" in found[-1]


def test_an_expert_that_is_missing(make_model: MakeModel, tmp_path: Path) -> None:
    mixture = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    folder = make_model(tmp_path / "m", "qwen3_moe", **mixture)
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert refused(folder, {}) == [
        "model.layers.1.mlp.experts.3.up_proj.weight: the checkpoint has no such tensor"
    ]


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}


def test_phi_with_longrope(make_model: MakeModel, tmp_path: Path) -> None:
    longrope = {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 64}}
    fields = {"max_position_embeddings": 4096, "original_max_position_embeddings": 64}
    adapter = adapter_of(make_model(tmp_path / "m", "phi3", **longrope, **fields))
    assert adapter.max_sequence_length == 4096
    # What is one tensor for transformers is one for vLLM too.
    assert all(len(parts) == 1 for parts in adapter.fused(0).values())


class Careful(BaseHuggingFaceAdapter):
    """Leaves some linears exact."""

    exact: ClassVar[Mapping[str, str]] = {
        "self_attn.v_proj": "gives o its input",
        "*.k_proj": "shares v's input",
    }


def test_what_an_adapter_keeps_exact_neither_reads_nor_gives_scaled_inputs() -> None:
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    qkv = SharedInput(name=names[0], linears=names, producer=Producer(name="norm", norm=True))
    o = SharedInput(
        name="self_attn.o_proj",
        linears=("self_attn.o_proj",),
        producer=Producer(name="self_attn.v_proj"),
    )
    shapes = dict.fromkeys([*names, "self_attn.o_proj"], (64, 64))
    layout = Layout(
        architecture="LlamaForCausalLM",
        prefix="model.layers.{}.",
        module_prefix="model.layers.{}.",
        kinds=(BlockKind(inputs=(qkv, o), shapes=shapes),),
        kind_of=(0, 0),
        embedding="model.embed_tokens",
        head="lm_head",
        tied=False,
    )
    plain, careful = (
        adapter({"model_type": "llama"}, layout) for adapter in (BaseHuggingFaceAdapter, Careful)
    )
    assert plain.inputs(1) == (qkv, o)
    first, second = careful.inputs(1)
    assert (first.name, first.linears, first.producer) == (names[0], names[:1], None)
    assert (second.linears, second.producer) == (o.linears, None)
    assert careful.kept_exact(1) == {
        "self_attn.v_proj": "gives o its input",
        "self_attn.k_proj": "shares v's input",
    }
    assert careful.linears(1) == ("self_attn.q_proj", "self_attn.o_proj")


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("gemma3_images", ["vision_tower."]),
        ("qwen3_vl", ["visual."]),
        ("mistral3_images", ["vision_tower.", "multi_modal_projector."]),
    ],
)
def test_towers_stay_exact_by_the_names_that_vllm_has_for_them_too(
    family: str, names: list[str], tmp_path: Path
) -> None:
    outside = adapter_of(zoo.make(family, tmp_path)).outside()
    assert set(names) <= set(outside)
