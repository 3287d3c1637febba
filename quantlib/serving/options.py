"""vLLM's arguments as a command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any, Literal

_NO_FLOAT16 = ("gemma2", "gemma3", "gemma3_text", "glm4")
"""Model types that overflow in float16: vLLM refuses it for them (``vllm/config/model.py``)."""


def serving_dtype(config: Mapping[str, Any]) -> Literal["bfloat16", "float16"]:
    """The dtype that a model is served in: its own, or bfloat16 where vLLM does not serve that.

    Args:
        config: The parsed ``config.json``.
    """
    stored = config.get("dtype") or config.get("torch_dtype")
    if stored == "float16" and config.get("model_type") not in _NO_FLOAT16:
        return "float16"
    return "bfloat16"


def serve_options(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments of vLLM's server as words of a command.

    Args:
        arguments: Values by name: true is a flag, false and null are left out, lists and mappings
            are given as JSON.
    """
    words = []
    for name, value in arguments.items():
        if value is None or value is False:
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(json.dumps(value) if isinstance(value, (list, dict)) else str(value))
    return words


def serve_line(folder: str, arguments: Mapping[str, Any]) -> str:
    """The command that starts vLLM's OpenAI server, as a line to paste into a shell."""
    return shlex.join(["vllm", "serve", folder, *serve_options(arguments)])
