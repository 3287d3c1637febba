"""Fields of a config that nobody knows."""

from typing import Any

import pytest
from transformers import AutoConfig

from quantlib.errors import InvalidInputError
from quantlib.models import model_registry
from quantlib.models.config_fields import HARMLESS, OF_ALL, OF_FAMILY

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 512,
}


def refused(**fields: Any) -> list[str]:
    with pytest.raises(InvalidInputError) as caught:
        model_registry.adapter_for(LLAMA | fields)
    return [str(problem) for problem in caught.value.problems]


def test_every_family_is_in_the_table() -> None:
    shipped = {
        name
        for name in model_registry
        if model_registry.get_adapter(name).__module__.startswith("quantlib.models.")
    }
    assert set(OF_FAMILY) == shipped


@pytest.mark.parametrize("model_type", OF_FAMILY)
def test_the_table_is_transformers(model_type: str) -> None:
    written = AutoConfig.for_model(model_type).to_dict()
    assert written.keys() - OF_ALL - OF_FAMILY[model_type] - HARMLESS == set()


def test_a_field_that_could_change_the_function_is_refused() -> None:
    found = refused(residual_multiplier_new=0.3, no_rope_layers=[1, 0, 1, 0], qk_norm=True)
    assert found == [
        "config.json: residual_multiplier_new: 0.3 is unknown for llama, and may change what the "
        "model computes; remove it if it does not, else add an adapter: docs/extension_guide.md",
        "config.json: no_rope_layers: [1, 0, 1, 0] is unknown for llama, and may change what the "
        "model computes; remove it if it does not, else add an adapter: docs/extension_guide.md",
        "config.json: qk_norm: True is unknown for llama, and may change what the model computes; "
        "remove it if it does not, else add an adapter: docs/extension_guide.md",
    ]
    # Another family's field is unknown too.
    assert "residual_multiplier: 0.22 is unknown for llama" in refused(residual_multiplier=0.22)[0]


@pytest.mark.parametrize("value", [None, False, 0, 0.0, 1, 1.0, [], {}, "", "default", "none"])
def test_a_value_that_asks_for_nothing_passes(value: Any) -> None:
    model_registry.adapter_for(LLAMA | {"something_new": value})


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
    model_registry.adapter_for(LLAMA | fields)
