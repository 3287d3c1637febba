"""Which numbers of GPUs can share a model, against what vLLM's rules give by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from problems import input_problems

from quantlib.checkpoint.source import FolderSource
from quantlib.checks.sharding import sharding_of
from quantlib.recipe import Recipe
from quantlib.schemes import WeightScheme
from quantlib.serving.arguments import checkpoint_sharding

SMOLLM2 = {
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
}
LLAMA_70B = {
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
}
MIXTURE = LLAMA_70B | {"moe_intermediate_size": 768}


@pytest.mark.parametrize(
    ("config", "weights", "quantized", "expected"),
    [
        (SMOLLM2, None, (), [1, 3]),  # not 9, which does not divide 1536
        (SMOLLM2, {"group_size": 64}, ("o_proj", "down_proj"), [1, 3]),
        (SMOLLM2, {"group_size": 128}, ("down_proj",), [1, 3]),  # the 576 inputs stay exact
        (SMOLLM2, {"group_size": 128}, ("o_proj", "down_proj"), [1]),
        (LLAMA_70B, None, (), [1, 2, 4, 8, 16, 32, 64]),
        (LLAMA_70B, {"group_size": 128}, ("o_proj", "down_proj"), [1, 2, 4, 8, 16, 32]),
        (LLAMA_70B, {"group_size": -1}, ("o_proj", "down_proj"), [1, 2, 4, 8, 16, 32, 64]),
        (MIXTURE, {"group_size": 128}, ("o_proj", "down_proj"), [1, 2]),
        (
            MIXTURE,
            {"group_size": -1, "bits": 8, "type": "float"},
            ("o_proj", "down_proj"),
            [1, 2, 4, 8, 16, 32, 64],
        ),
    ],
)
def test_sizes_that_work(
    config: dict[str, Any],
    weights: dict[str, Any] | None,
    quantized: tuple[str, ...],
    expected: list[int],
) -> None:
    scheme = None if weights is None else WeightScheme(**weights)
    assert sharding_of(config, scheme, quantized).sizes() == expected


# By vllm/model_executor/layers/quantization/utils/fp8_utils.py and layers/linear.py of 0.32.
QWEN3_8B = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
}
QWEN3_30B = {
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
}
QWEN2_0_5B = {
    "hidden_size": 896,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 4864,
}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
BLOCKS = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {
            "weights": {
                "num_bits": 8,
                "type": "float",
                "strategy": "block",
                "block_structure": [128, 128],
            }
        }
    },
}


@pytest.mark.parametrize(
    ("config", "quantization", "expected"),
    [
        (QWEN3_8B, FP8, [1, 2, 4, 8, 16, 32]),  # 12288 / 32 is three blocks
        (QWEN3_30B, FP8, [1, 2]),  # 768 / 4 is a block and a half
        (QWEN2_0_5B, FP8, [1]),  # 896 / 2 is three blocks and a half, whatever k_proj gives
        (QWEN2_0_5B | {"intermediate_size": 4096, "num_attention_heads": 16}, FP8, [1, 2, 4, 8]),
        # compressed-tensors also wants whole blocks of k_proj: 2 x 64 on one GPU, 64 on two.
        (QWEN2_0_5B | {"intermediate_size": 4096, "num_attention_heads": 16}, BLOCKS, [1]),
        (QWEN3_8B, BLOCKS, [1, 2, 4, 8, 16, 32]),
    ],
)
def test_weights_in_blocks(
    config: dict[str, Any], quantization: dict[str, Any], expected: list[int], tmp_path: Path
) -> None:
    whole = config | {"quantization_config": quantization, "model_type": "other"}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    sharding = checkpoint_sharding(tmp_path)
    assert sharding is not None
    assert sharding.sizes() == expected


def test_every_reason_is_given() -> None:
    found = sharding_of(SMOLLM2, WeightScheme(group_size=64)).problems(4)
    assert found == [
        "9 attention heads cannot be divided by 4",
        "3 key/value heads can be neither divided by 4 nor repeated evenly",
        "each GPU would get 144 inputs of o_proj, which are no whole groups of 64",
    ]
    assert sharding_of(SMOLLM2, WeightScheme(group_size=64)).problems(7)[-1] == (
        "the 1536 inputs of down_proj cannot be divided by 7"
    )


def test_a_recipe_for_more_gpus_than_can_share_the_model_is_refused(
    tiny_llama: Path, small_recipe: Callable[..., Recipe]
) -> None:
    source = FolderSource(tiny_llama)
    assert not input_problems(small_recipe(serving={"tensor_parallel_size": 2}), source)
    weights = {"bits": 4, "group_size": 64}
    recipe = small_recipe(quantization={"weights": weights}, serving={"tensor_parallel_size": 2})
    (problem,) = input_problems(recipe, source)
    assert str(problem) == (
        "serving.tensor_parallel_size: 2 GPUs cannot share the model: each GPU would get 32 inputs "
        "of o_proj, which are no whole groups of 64; sizes that work: 1; group sizes that "
        "work with 2: -1, 32"
    )
    kept = {"weights": weights, "ignore": ["o_proj"]}
    recipe = small_recipe(quantization=kept, serving={"tensor_parallel_size": 2})
    assert not input_problems(recipe, source)
