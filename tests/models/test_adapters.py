from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError, UnknownNameError
from quantlib.models import QwenAdapter, model_registry
from quantlib.models.config_fields import OF_ALL, OF_FAMILY

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 100,
}


def test_unknown_family_lists_the_supported() -> None:
    with pytest.raises(UnknownNameError, match=r"'mamba'; known: gemma2, .*olmo2, .*guide\.md"):
        model_registry.adapter_for({"model_type": "mamba"})
    with pytest.raises(InvalidInputError, match="model_type: is missing"):
        model_registry.adapter_for({})


def test_a_multimodal_model_is_refused_with_a_pointer_to_its_language_model() -> None:
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}
    with pytest.raises(InvalidInputError, match=r"'gemma3' takes in more .*\(gemma3_text\)"):
        model_registry.adapter_for(config)


def test_config_faults_are_named_together() -> None:
    config = CONFIG | {
        "hidden_size": None,
        "hidden_act": "relu6",
        "rope_scaling": {"type": "dynamic", "factor": 2},
        "partial_rotary_factor": 0.5,
    }
    with pytest.raises(InvalidInputError) as caught:
        model_registry.adapter_for(config)
    text = str(caught.value)
    for field in ("hidden_size", "hidden_act", "rope_type", "partial_rotary_factor"):
        assert field in text


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("hidden_size", "64", "hidden_size: '64' is no positive whole number"),
        ("hidden_size", None, "hidden_size: is missing or no positive whole number"),
        ("head_dim", 0, "head_dim: 0 is no positive whole number"),
        ("num_key_value_heads", 1.5, "num_key_value_heads: 1.5 is no positive whole number"),
        ("max_position_embeddings", "lots", "'lots' is no positive whole number"),
        ("rms_norm_eps", "1e-6", "rms_norm_eps: '1e-6' is no positive number"),
        ("rope_theta", "1e4", "rope_theta: '1e4' is no positive number"),
        ("rope_parameters", [1], "rope_parameters: is no mapping"),
        ("rope_scaling", "linear", "rope_scaling: is no mapping"),
        ("rope_scaling", {"type": "linear", "factor": "8"}, "factor: '8' is no number"),
    ],
)
def test_a_field_of_the_wrong_kind(field: str, value: Any, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        model_registry.adapter_for(CONFIG | {field: value})
    assert f"config.json: {field}" in str(caught.value) or "rope_parameters" in str(caught.value)
    assert said in str(caught.value)


def test_missing_and_misshapen_tensors(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(FolderSource(tiny_llama))
    config = dict(checkpoint.config) | {"num_hidden_layers": 5, "vocab_size": 500}
    found = [str(problem) for problem in model_registry.adapter_for(config).problems(checkpoint)]
    assert "model.embed_tokens.weight: has shape [512, 64]; the config says [500, 64]" in found
    missing = "model.layers.4.self_attn.q_proj.weight: the checkpoint has no such tensor"
    (line,) = (line for line in found if line.startswith(missing))
    assert "and so with 8 more: model.layers.4.self_attn.k_proj.weight, " in line
    assert "it holds model.embed_tokens.weight, " in line


def test_tensors_that_a_family_does_not_have(make_model: Any, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "llama", attention_bias=True, tie_word_embeddings=True)
    checkpoint = Checkpoint.open(FolderSource(folder))
    assert model_registry.adapter_for(checkpoint.config).problems(checkpoint) == []
    config = dict(checkpoint.config) | {"attention_bias": False}
    found = [str(problem) for problem in model_registry.adapter_for(config).problems(checkpoint)]
    (line,) = found
    assert (
        "bias: is no tensor that a block of llama with this config has, and so with 15 more" in line
    )
    config |= {"model_type": "qwen3"}
    found = [str(problem) for problem in model_registry.adapter_for(config).problems(checkpoint)]
    assert "model.layers.0.self_attn.q_norm.weight: the checkpoint has no such tensor" in found[0]


GEMMA = CONFIG | {
    "num_hidden_layers": 8,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 16,
}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("gemma2", {}),
        ("gemma2", {"rope_theta": 500.0}),
        ("gemma3_text", {}),
        (
            "gemma3_text",
            {
                "sliding_window_pattern": 3,
                "rope_theta": 1e5,
                "rope_local_base_freq": 300.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
    ],
)
def test_configs_as_they_are_on_the_hub_mean_what_transformers_makes_of_them(
    model_type: str, config: dict[str, Any]
) -> None:
    config = GEMMA | config | {"model_type": model_type}
    adapter: Any = model_registry.adapter_for(config)
    meant = AutoConfig.for_model(**config)
    assert adapter.layer_types == meant.layer_types
    for block, kind in enumerate(meant.layer_types):
        expected = meant.rope_parameters.get(kind, meant.rope_parameters)
        found = adapter.rope_parameters(block)
        assert {name: found[name] for name in expected} == expected
        assert adapter.sliding_window(block) == (16 if kind == "sliding_attention" else None)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("gemma2", {"query_pre_attn_scalar": None}, "query_pre_attn_scalar: is missing or no"),
        ("gemma2", {"head_dim": None}, "head_dim: is missing or no"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation: 'gelu' is not supported"),
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types: does not give each of 8"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention: True"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: 50.0"),
        (
            "gemma3_text",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            "rope_parameters: has to be given by type: full_attention, sliding_attention",
        ),
        ("granite", {"attention_multiplier": None}, "attention_multiplier: is missing or no"),
        ("olmo2", {"sliding_window": 16}, "sliding_window: 16 is not supported"),
        ("phi3", {"rope_scaling": LONGROPE}, "original_max_position_embeddings: is missing"),
        (
            "phi3",
            {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64, "head_dim": 16},
            "short_factor: has to list 8 numbers",
        ),
        (
            "phi3",
            {"rope_scaling": LONGROPE | {"short_mscale": 1.2}},
            "short_mscale: is not known with longrope",
        ),
        ("phi3", {"rope_scaling": {"type": "yarn"}}, "rope_type: 'yarn' is not supported"),
        ("phi3", {"partial_rotary_factor": 0.1}, "rotates 3 of a head's 32 channels"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "factor: is missing; linear needs it"),
        ("llama", {"rope_theta": "10000"}, "rope_theta: '10000' is no positive number"),
        (
            "llama",
            {"rope_scaling": {"type": "default", "mrope_section": [1]}},
            "mrope_section: is not known with default",
        ),
    ],
)
def test_what_is_not_computed_is_refused(
    model_type: str, changes: dict[str, Any], message: str
) -> None:
    multipliers = dict.fromkeys(
        ("embedding_multiplier", "residual_multiplier", "attention_multiplier"), 1.0
    )
    config = GEMMA | multipliers | {"model_type": model_type, "sliding_window": None}
    known = OF_ALL | OF_FAMILY[model_type] | {"model_type"}
    config = {name: value for name, value in config.items() if name in known}
    model_registry.adapter_for(config)
    with pytest.raises(InvalidInputError) as caught:
        model_registry.adapter_for(config | changes)
    assert message in str(caught.value)


def test_phi_with_longrope() -> None:
    config = CONFIG | {"model_type": "phi3", "max_position_embeddings": 4096, "head_dim": 32}
    config |= {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64}
    adapter = model_registry.adapter_for(config)
    assert adapter.max_sequence_length == 4096
    assert adapter.fused(0) == {}


def test_qwen_ignores_a_sliding_window_that_is_switched_off() -> None:
    config = CONFIG | {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": False}
    assert QwenAdapter(config).sliding_window(1) is None
    config |= {"use_sliding_window": True, "max_window_layers": 1}
    adapter = QwenAdapter(config)
    assert (adapter.sliding_window(0), adapter.sliding_window(1)) == (None, 8)
