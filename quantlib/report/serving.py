"""vLLM's arguments as a command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any


def serve_command(folder: str, arguments: Mapping[str, Any]) -> list[str]:
    """The command that starts vLLM's OpenAI server.

    Args:
        folder: The checkpoint.
        arguments: Values by name, as ``vllm_config.json`` holds them: true is a flag, false and
            null are left out, lists and mappings are given as JSON.
    """
    command = ["vllm", "serve", folder]
    for name, value in arguments.items():
        if value is None or value is False:
            continue
        command.append("--" + name.replace("_", "-"))
        if value is not True:
            command.append(json.dumps(value) if isinstance(value, (list, dict)) else str(value))
    return command


def serve_line(folder: str, arguments: Mapping[str, Any]) -> str:
    """:func:`serve_command` as a line to paste into a shell."""
    return shlex.join(serve_command(folder, arguments))
