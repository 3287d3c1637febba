"""What a checkpoint may say of how it is served: it chooses no code, no other model, no limit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from quantlib.errors import InvalidInputError
from quantlib.serving.vllm_config import parse_vllm_config


def test_what_a_checkpoint_may_say() -> None:
    content = {"quantization": "compressed-tensors", "dtype": "float16", "load_format": "auto"}
    config = parse_vllm_config(json.dumps(content).encode(), "here")
    assert config.quantization == "compressed-tensors"
    assert config.arguments() == {"dtype": "float16", "load_format": "auto"}
    assert parse_vllm_config(b"{}", "here").arguments() == {}


@pytest.mark.parametrize(
    "content",
    [
        {"trust_remote_code": True},
        {"middleware": "evil.Middleware"},
        {"model": "attacker/other"},
        {"tool_parser_plugin": "/tmp/x.py"},
        {"load_format": "pt"},
        {"load_format": ["auto"]},
        {"max_model_len": 2048},
        {"dtype": "float16 --trust-remote-code"},
        {"dtype": "--trust-remote-code"},
        {"dtype": True},
        {"dtype": {"a": 1}},
        {"quantization": "--trust-remote-code"},
        {"quantization": "gptq\n--trust-remote-code"},
        {"quantization": "gptq\n"},
        {"quantization": 4},
        {"": 1},
        {"hf-overrides": {"auto_map": {}}},
        [],
    ],
)
def test_all_else_is_refused_in_one_line(content: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_vllm_config(json.dumps(content).encode(), "vllm_config.json")
    (line,) = str(caught.value).splitlines()
    assert line.startswith("vllm_config.json: ")


def test_a_file_that_is_damaged_is_refused() -> None:
    for data in (b"", b"[" * 99_999, b'{"dtype": "auto", "dtype": "auto"}', b"\xff"):
        with pytest.raises(InvalidInputError, match=r"^vllm_config\.json: "):
            parse_vllm_config(data, "vllm_config.json")
