"""What vLLM makes of our checkpoints: families and formats against what the codes stand for.

vLLM loads the quantized checkpoint; transformers computes the reference in float32 from the
dequantized weights. Both see the same tokens; logits differ by the rounding of bfloat16.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import assert_served_as_meant, reference_logprobs, served_logprobs

from quantlib.store import LocalStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform"),
]

CT = {"format": "compressed-tensors"}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama-gptq": ("llama", "bfloat16", {}),
    "llama-gptq-layers": ("llama", "float16", {"layers": [0, 2]}),
    "llama-gptq-ignore": ("llama", "bfloat16", {"ignore": ["o_proj", "gate_proj", "up_proj"]}),
    "mistral-gptq-channel": ("mistral", "float32", {"weights": {"bits": 4, "group_size": -1}}),
    "qwen2-packed-asymmetric": (
        "qwen2",
        "float16",
        CT | {"weights": {"bits": 4, "group_size": 32, "symmetric": False}},
    ),
    "qwen3-packed-layers": ("qwen3", "bfloat16", CT | {"layers": [1, 3]}),
    "llama-awq": (
        "llama",
        "bfloat16",
        {"method": "awq", "weights": {"bits": 4, "group_size": 32, "symmetric": False}},
    ),
    "llama-awq-symmetric-layers": ("llama", "float16", {"method": "awq", "layers": [0, 2]}),
    "qwen2-awq-packed-asymmetric": (
        "qwen2",
        "bfloat16",
        CT | {"method": "awq", "weights": {"bits": 4, "group_size": 32, "symmetric": False}},
    ),
    "qwen3-gptq-as-awq": (
        "qwen3",
        "float32",
        {"format": "awq", "weights": {"bits": 4, "group_size": 64, "symmetric": False}},
    ),
    "llama-w8a8": (
        "llama",
        "float32",
        CT | {"weights": {"bits": 8, "group_size": -1}, "activations": "int8"},
    ),
    "qwen2-w8a8-static": (
        "qwen2",
        "bfloat16",
        CT | {"weights": {"bits": 8, "group_size": -1}, "activations": "int8-static"},
    ),
    "gemma2-packed": ("gemma2", "bfloat16", CT | {"ignore": ["down_proj"]}),
    "gemma3-gptq": ("gemma3_text", "bfloat16", {}),
    "phi3-packed-layers": ("phi3", "bfloat16", CT | {"layers": [0, 3]}),
    "phi3-gptq-ignore": ("phi3", "bfloat16", {"ignore": ["gate_up_proj"]}),
    "granite-gptq": ("granite", "bfloat16", {}),
    "olmo2-gptq-layers": ("olmo2", "bfloat16", {"layers": [1, 2]}),
}
"""Family, dtype of the original and quantization."""

SETTINGS: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0, "sliding_window": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window": 16, "sliding_window_pattern": 2},
    "phi3": {
        "original_max_position_embeddings": 128,
        "rope_parameters": {
            "rope_type": "longrope",
            "partial_rotary_factor": 0.5,
            "short_factor": [1.5] * 8,
            "long_factor": [8.0] * 8,
        },
    },
    "granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.25,
        "logits_scaling": 2.0,
    },
}
"""What a family's tiny model has besides."""


@pytest.fixture(scope="module")
def logprobs(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., Path],
    small_recipe: Callable[..., Any],
    run_steps: Callable[..., Any],
) -> dict[str, np.ndarray]:
    """Of every case, by vLLM and as a reference; ``[2, positions, vocabulary]``."""
    root = tmp_path_factory.mktemp("served")
    for name, (model_type, dtype, quantization) in CASES.items():
        folder = root / name / "source"
        settings = {"initializer_range": 0.1} | SETTINGS.get(model_type, {})
        source = make_model(folder, model_type, dtype=dtype, **settings)
        recipe = small_recipe(num_ranges=2, quantization=quantization)
        store = LocalStore(root / name / "store")
        made = run_steps(store, recipe, source)
        made.export(root / name / "quantized")
    folders = [root / name / "quantized" for name in CASES]
    served = served_logprobs(folders, root)
    return {
        name: np.array([of_vllm, reference_logprobs(folder)])
        for name, folder, of_vllm in zip(CASES, folders, served, strict=True)
    }


@pytest.mark.parametrize("case", CASES)
def test_vllm_computes_what_the_quantizer_meant(case: str, logprobs: dict[str, np.ndarray]) -> None:
    assert_served_as_meant(*logprobs[case])
