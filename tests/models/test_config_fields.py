"""Fields of a config that nobody knows."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zoo
from recipes import settled_recipe
from transformers import AutoConfig

from quantlib.checkpoint.source import FolderSource
from quantlib.checks.model import model_problems
from quantlib.models import open_model
from quantlib.models.config_fields import field_problems

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 512,
}


def found(config: dict[str, Any]) -> list[str]:
    own = AutoConfig.for_model(**copy.deepcopy(config))
    return [str(problem) for problem in field_problems(config, own)]


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_what_transformers_writes_and_the_hub_has_is_known(family: str) -> None:
    own = AutoConfig.for_model(**copy.deepcopy(zoo.FAMILIES[family]))
    written = own.to_dict() | zoo.HUB_FIELDS.get(family, {})
    assert list(field_problems(written, own)) == []


def test_a_field_that_could_change_the_function_is_refused() -> None:
    fields = {"residual_multiplier_new": 0.3, "no_rope_layers": [1, 0, 1, 0], "qk_norm": True}
    assert found(LLAMA | fields) == [
        "config.json: residual_multiplier_new: 0.3 is unknown for llama, and may change what the "
        "model computes; remove it if it does not, else add an adapter: docs/extension_guide.md",
        "config.json: no_rope_layers: [1, 0, 1, 0] is unknown for llama, and may change what the "
        "model computes; remove it if it does not, else add an adapter: docs/extension_guide.md",
        "config.json: qk_norm: True is unknown for llama, and may change what the model computes; "
        "remove it if it does not, else add an adapter: docs/extension_guide.md",
    ]
    # Another family's field is unknown too.
    (line,) = found(LLAMA | {"residual_multiplier": 0.22})
    assert "residual_multiplier: 0.22 is unknown for llama" in line


def test_a_field_of_the_language_model_in_a_wrapper_is_named_with_its_place() -> None:
    config = zoo.FAMILIES["gemma3_images"]
    text = {**config["text_config"], "residual_multiplier": 0.22}
    vision = {**config["vision_config"], "something": 0.5}  # text does not go through it
    (line,) = found({**config, "text_config": text, "vision_config": vision})
    assert line.startswith("config.json: text_config.residual_multiplier: 0.22 is unknown for gem")


def test_opening_a_model_names_all_of_them(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"qk_norm": True, "residual_multiplier": 0.22}
    path.write_text(json.dumps(config))
    checkpoint, adapter = open_model(FolderSource(folder))
    wrong = ["config.json: qk_norm", "config.json: residual_multiplier"]
    assert [each.where for each in adapter.layout.obstacles] == wrong
    recipe = settled_recipe({"quantization": {"weights": {"group_size": 32}}})
    problems = model_problems(recipe, checkpoint, adapter)
    assert [problem.where for problem in problems] == wrong
    assert "remove it if it does not, else add an adapter" in problems[0].remedy
    # What does not compute the model does not mind.
    recipe = settled_recipe({"quantization": {"method": "minmax", "weights": {"group_size": 32}}})
    assert not model_problems(recipe, checkpoint, adapter, validated=False)


@pytest.mark.parametrize("value", [None, False, 0, 0.0, 1, 1.0, [], {}, "", "default", "none"])
def test_a_value_that_asks_for_nothing_passes(value: Any) -> None:
    assert found(LLAMA | {"something_new": value}) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"_name_or_path": "org/name", "unsloth_version": "2025.1", "is_llama_config": True},
        {"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}},
        {"rope_theta": 500000.0, "pretraining_tp": 1, "torch_dtype": "bfloat16"},
        {"temperature": 0.6, "top_p": 0.9, "auto_map": {"AutoConfig": "x--y.Z"}},
    ],
)
def test_what_real_configs_hold_besides(fields: dict[str, Any]) -> None:
    assert found(LLAMA | fields) == []


GLM = {"model_type": "glm_moe_dsa", "num_hidden_layers": 4, "hidden_size": 64}


@pytest.mark.parametrize(
    "fields",
    [
        # The code of transformers' class asks for it by name.
        {"model_type": "qwen3_5_text", "full_attention_interval": 2},
        # It has the same by another name.
        {"model_type": "gpt_oss", "num_experts_per_tok": 3, "experts_per_token": 3},
        # It does that always.
        GLM | {"rope_interleave": True},
        # Of tokens, draft layers and dtypes.
        LLAMA | {"media_placeholder_token_id": 7, "ignore_index": -100},
        LLAMA | {"mtp_hybrid_override_pattern": "*E", "index_share_for_mtp_iteration": True},
        LLAMA | {"mamba_ssm_dtype": "float32"},
        # Of training; the rest is what the code does anyway.
        {"model_type": "afmoe", "load_balance_coeff": 0.001, "use_grouped_mm": True}
        | {"route_norm": True, "score_func": "sigmoid"},
        # Of blocks that use a window, of which there are none.
        {"model_type": "qwen3_moe", "max_window_layers": 28, "use_sliding_window": False},
        # For every block the same: none of them skips anything.
        LLAMA | {"attn_type_list": [1, 1, 1, 1]},
    ],
)
def test_what_is_known_in_another_way(fields: dict[str, Any]) -> None:
    assert found(fields) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "gpt_oss", "num_experts_per_tok": 3, "experts_per_token": 4},
        GLM | {"rope_interleave": "half"},
        LLAMA | {"rope_interleave": True},
        LLAMA | {"video_scale": 0.5},  # it is no wrapper
        {"model_type": "qwen3_moe", "max_window_layers": 28, "use_sliding_window": True},
        LLAMA | {"attn_type_list": [1, 0, 1, 1]},
        {"model_type": "afmoe", "score_func": "softmax"},
    ],
)
def test_what_says_something_else_is_refused(fields: dict[str, Any]) -> None:
    (line,) = found(fields)
    assert "is unknown for" in line


def test_what_a_wrapper_says_of_images_or_says_twice_is_known() -> None:
    config = zoo.FAMILIES["gemma3_images"]
    hidden = config["text_config"]["hidden_size"]
    tied = AutoConfig.for_model(**copy.deepcopy(config)).tie_word_embeddings
    more = {"vision_soft_tokens_per_image": 280, "hidden_size": hidden}
    text = {**config["text_config"], "tie_word_embeddings": tied}
    assert found({**config, **more, "text_config": text}) == []
    (line,) = found({**config, "hidden_size": hidden + 1})
    assert line.startswith("config.json: hidden_size: ")
