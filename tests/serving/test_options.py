"""In which dtype a model is served."""

import ast
import importlib.util
from pathlib import Path

import pytest

from quantlib.serving.options import _NO_FLOAT16, serving_dtype


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "float16", "model_type": "llama"}, "float16"),
        ({"dtype": "bfloat16", "torch_dtype": "float16"}, "bfloat16"),
        ({"dtype": "float32"}, "bfloat16"),
        ({}, "bfloat16"),
        ({"torch_dtype": "float16", "model_type": "gemma2"}, "bfloat16"),
        ({"dtype": "float16", "model_type": "gemma3_text"}, "bfloat16"),
    ],
)
def test_the_dtype_of_a_model(config: dict[str, str], expected: str) -> None:
    assert serving_dtype(config) == expected


def test_the_types_that_vllm_refuses_in_float16() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    (folder,) = spec.submodule_search_locations
    tree = ast.parse((Path(folder) / "config/model.py").read_text(encoding="utf-8"))
    (table,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "_FLOAT16_NOT_SUPPORTED_MODELS"
    )
    assert sorted(ast.literal_eval(table)) == sorted(_NO_FLOAT16)
