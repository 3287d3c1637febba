"""vLLM's arguments as a command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any


def serving_dtype(config: Mapping[str, Any]) -> str:
    """The dtype that a model is served in: its own, or bfloat16 where vLLM has no kernels for it.

    Args:
        config: The parsed ``config.json``.
    """
    stored = config.get("dtype") or config.get("torch_dtype")
    return stored if stored in ("bfloat16", "float16") else "bfloat16"


def serve_options(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments of vLLM's server as words of a command.

    Args:
        arguments: Values by name, as ``vllm_config.json`` holds them: true is a flag, false and
            null are left out, lists and mappings are given as JSON.
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
