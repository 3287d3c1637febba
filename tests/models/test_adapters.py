from pathlib import Path

import pytest

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError, UnknownNameError
from quantlib.models import QwenAdapter, model_registry

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 100,
}


def test_unknown_family_lists_the_supported() -> None:
    with pytest.raises(UnknownNameError, match=r"'mamba'; known: llama, mistral, .*qwen2, qwen3"):
        model_registry.adapter_for({"model_type": "mamba"})
    with pytest.raises(InvalidInputError, match="model_type: is missing"):
        model_registry.adapter_for({})


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


def test_missing_and_misshapen_tensors(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(FolderSource(tiny_llama))
    config = dict(checkpoint.config) | {"num_hidden_layers": 5, "vocab_size": 500}
    found = [str(problem) for problem in model_registry.adapter_for(config).problems(checkpoint)]
    assert "model.embed_tokens.weight: has shape [512, 64]; the config says [500, 64]" in found
    assert "model.layers.4.mlp.down_proj.weight: the checkpoint has no such tensor" in found


def test_qwen_ignores_a_sliding_window_that_is_switched_off() -> None:
    config = CONFIG | {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": False}
    assert QwenAdapter(config).sliding_window(1) is None
    config |= {"use_sliding_window": True, "max_window_layers": 1}
    adapter = QwenAdapter(config)
    assert (adapter.sliding_window(0), adapter.sliding_window(1)) == (None, 8)
