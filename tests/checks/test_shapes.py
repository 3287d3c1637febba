"""What vLLM cannot read for its shapes, though groups divide it: refused before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from problems import input_problems

from quantlib.checkpoint.source import FolderSource

SIZES = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}
MIXTURE = {"num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
FUSED = (
    "vLLM computes self_attn.q_proj, self_attn.k_proj, self_attn.v_proj as one, of which all but "
    "the last have to be whole blocks of 128 rows in FP8_BLOCK, and self_attn.k_proj has 64"
)
EXPERTS = "vLLM reads experts in W4AFP8 whose sides are multiples of 256, and mlp.experts.*."


@pytest.mark.parametrize(
    ("family", "config", "scheme", "expected"),
    [
        ("llama", {"num_key_value_heads": 2}, "FP8_BLOCK", FUSED),
        ("llama", {"num_key_value_heads": 4}, "FP8_BLOCK", None),
        ("llama", {"num_key_value_heads": 2}, "FP8_DYNAMIC", None),
        ("qwen3_moe", MIXTURE, "W4AFP8", EXPERTS),
        ("qwen3_moe", MIXTURE | {"moe_intermediate_size": 256}, "W4AFP8", None),
        ("qwen3_moe", MIXTURE | {"num_key_value_heads": 4}, "FP8_BLOCK", None),
    ],
)
def test_what_vllm_cannot_read_for_its_shape_is_refused(
    family: str,
    config: dict[str, Any],
    scheme: str,
    expected: str | None,
    make_model: Callable[..., Path],
    small_recipe: Callable[..., Any],
    tmp_path: Path,
) -> None:
    source = make_model(tmp_path / "source", family, **SIZES | config)
    section = {"method": "minmax", "schemes": [{"scheme": scheme}]}
    found = [
        str(problem)
        for problem in input_problems(small_recipe(quantization=section), FolderSource(source))
    ]
    if expected is None:
        assert not found
    else:
        assert len(found) == 1
        assert expected in found[0]
        assert "give them another scheme, or leave them exact" in found[0]
