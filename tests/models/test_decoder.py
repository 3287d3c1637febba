"""Blocks computed by us against transformers' own models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.source import FolderSource
from quantlib.models import model_registry

LENGTH = 96
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
PARTIAL = {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.75}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "short_factor": [1.0 + pair / 16 for pair in range(16)],
    "long_factor": [2.0 + pair for pair in range(16)],
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-untied-biases": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    ),
    "llama-linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
    ),
    "llama-llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama-yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral-sliding": ("mistral", {"sliding_window": 16}),
    "qwen2": ("qwen2", {}),
    "qwen2-sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3-gelu": ("qwen3", {"hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 12, "attn_logit_softcapping": 2.0}),
    "gemma2-sliding": ("gemma2", GROUPED | {"sliding_window": 16, "attention_bias": True}),
    "gemma3": ("gemma3_text", GROUPED | {"query_pre_attn_scalar": 12}),
    "gemma3-sliding": (
        "gemma3_text",
        {
            "sliding_window": 16,
            "sliding_window_pattern": 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "gemma3-layer-types": (
        "gemma3_text",
        {"sliding_window": 16, "layer_types": ["full_attention", *["sliding_attention"] * 3]},
    ),
    "phi3": ("phi3", GROUPED),
    "phi3-sliding": ("phi3", {"sliding_window": 16}),
    "phi3-partial": ("phi3", {"rope_parameters": PARTIAL}),
    "phi3-longrope-short": (
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": LENGTH},
    ),
    "phi3-longrope-long": (
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": LENGTH - 1},
    ),
    "phi3-longrope-partial": (
        "phi3",
        {
            "rope_parameters": PARTIAL
            | LONGROPE
            | {"short_factor": [1.5] * 12, "long_factor": [4.0] * 12, "factor": 3.0},
            "original_max_position_embeddings": 64,
        },
    ),
    "granite": (
        "granite",
        GROUPED
        | {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.25,
            "attention_multiplier": 0.4,
            "logits_scaling": 2.0,
            "attention_bias": True,
        },
    ),
    "olmo2": ("olmo2", {}),
    "olmo2-grouped": ("olmo2", GROUPED),
}
"""Family and config; TINY of conftest.py has two heads of 32 channels that share keys."""


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_blocks_equal_those_of_transformers(case: str, make_model: Any, tmp_path: Path) -> None:
    model_type, config = CASES[case]
    folder = make_model(tmp_path / "m", model_type, dtype="float32", **config)
    checkpoint = Checkpoint.open(FolderSource(folder))
    adapter = model_registry.adapter_for(checkpoint.config)
    assert adapter.problems(checkpoint) == []
    model = adapter.load_model(checkpoint, torch.device("cpu"))
    tokens = torch.randint(0, 512, (2, LENGTH), generator=torch.Generator().manual_seed(1))

    # Only the eager attention caps scores.
    reference = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    expected: list[torch.Tensor] = []
    for layer in reference.model.layers:
        layer.register_forward_hook(lambda _, __, output: expected.append(output))
    reference(tokens)

    hidden = model.embed(tokens)
    for index in range(adapter.blocks):
        hidden = model.block(index).forward(hidden)
        torch.testing.assert_close(hidden, expected[index], rtol=5e-4, atol=5e-4)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("llama", {}),
        ("gemma2", {}),
        ("gemma3_text", {}),
        ("granite", {"embedding_multiplier": 1.3}),
    ],
)
@torch.no_grad()
def test_embeddings_equal_those_of_transformers_to_the_last_bit(
    model_type: str, config: dict[str, Any], make_model: Any, tmp_path: Path
) -> None:
    # The root of 96 is rounded in bfloat16, and so is 1.3.
    folder = make_model(tmp_path / "m", model_type, hidden_size=96, **config)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    first: list[torch.Tensor] = []
    reference.model.layers[0].register_forward_pre_hook(lambda _, inputs: first.append(inputs[0]))
    tokens = torch.arange(64)[None]
    reference(tokens)
    checkpoint = Checkpoint.open(FolderSource(folder))
    model = model_registry.adapter_for(checkpoint.config).load_model(
        checkpoint, torch.device("cpu")
    )
    assert torch.equal(model.embed(tokens), first[0])


@pytest.mark.usefixtures("bfloat16_products")
@torch.no_grad()
def test_bfloat16_products_are_closer_than_a_bfloat16_model(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(FolderSource(tiny_llama))
    adapter = model_registry.adapter_for(checkpoint.config)
    model = adapter.load_model(checkpoint, torch.device("cpu"))
    assert model.dtype == torch.bfloat16
    tokens = torch.arange(LENGTH)[None]
    states = {}
    for dtype in (torch.float32, torch.bfloat16):
        reference = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=dtype)
        # The last one is normalized; the one before is what enters the last block.
        states[dtype] = reference(tokens, output_hidden_states=True).hidden_states[-2].float()
    hidden = model.embed(tokens).float()
    for index in range(adapter.blocks - 1):
        hidden = model.block(index).forward(hidden)
    assert hidden.dtype == torch.float32

    def distance(states_: torch.Tensor) -> float:
        return float((states_ - states[torch.float32]).norm() / states[torch.float32].norm())

    assert 0 < distance(hidden) < distance(states[torch.bfloat16]) < 0.05


@pytest.mark.usefixtures("float32_products")
@torch.no_grad()
def test_observed_inputs_are_the_inputs_of_the_linears(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(FolderSource(tiny_llama))
    adapter = model_registry.adapter_for(checkpoint.config)
    model = adapter.load_model(checkpoint, torch.device("cpu"))
    tokens = torch.arange(LENGTH)[None]
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    expected: dict[str, torch.Tensor] = {}
    layer = reference.model.layers[0]
    for name in adapter.linears(0):
        layer.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: expected.__setitem__(name, inputs[0])
        )
    reference(tokens)
    observed = {}
    block = model.block(0)
    block.forward(
        model.embed(tokens).float(),
        lambda group, x: observed.update(dict.fromkeys(group.linears, x)),
    )
    assert set(observed) == set(adapter.linears(0))
    for name, x in observed.items():
        torch.testing.assert_close(x, expected[name], rtol=1e-5, atol=1e-5)


def test_only_the_tensors_of_a_block_are_read(tiny_llama: Path) -> None:
    reads: list[str] = []

    class Watched(FolderSource):
        def read(self, name: str, offset: int = 0, length: int | None = None) -> bytearray:
            reads.append(f"{offset}+{length}")
            return super().read(name, offset, length)

    checkpoint = Checkpoint.open(Watched(tiny_llama))
    adapter = model_registry.adapter_for(checkpoint.config)
    model = adapter.load_model(checkpoint, torch.device("cpu"))
    reads.clear()
    model.block(2)
    names = adapter.block_tensors(checkpoint, 2)
    infos = [checkpoint.info(name) for name in names]
    assert len(names) == 9
    assert sorted(reads) == sorted(f"{info.start}+{info.bytes}" for info in infos)
