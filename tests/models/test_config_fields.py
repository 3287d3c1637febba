"""Fields of a config that nobody knows."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zoo
from transformers import AutoConfig

from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError
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
    with pytest.raises(InvalidInputError) as caught:
        open_model(FolderSource(folder))
    assert [problem.where for problem in caught.value.problems] == [
        "config.json: qk_norm",
        "config.json: residual_multiplier",
    ]


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
