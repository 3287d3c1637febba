import contextlib
import importlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from quantlib.cli.deploy import deploy, serve_command
from quantlib.errors import InvalidInputError
from quantlib.store import LocalStore

MODULE = importlib.import_module("quantlib.cli.deploy")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {"quantization": "gptq", "dtype": "bfloat16", "max_model_len": 256}
    (tmp_path / "vllm_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("vllm", "start", "on_cpu"),
    [
        (None, ["vllm.entrypoints.openai.api_server", "--model"], True),
        ("0.32.0+cpu", ["vllm.entrypoints.cli.main", "serve"], True),
        ("0.32.0", ["vllm.entrypoints.cli.main", "serve"], False),
    ],
)
def test_arguments_come_from_the_checkpoint(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    vllm: str | None,
    start: list[str],
    on_cpu: bool,
) -> None:
    monkeypatch.setattr(MODULE, "_vllm_version", lambda: vllm)
    printed = CliRunner().invoke(deploy, ["--model-path", str(folder), "--name", "m", "--print"])
    assert printed.exit_code == 0
    words = shlex.split(printed.output)
    assert words[:4] == [sys.executable, "-m", *start]
    assert words[words.index(str(folder)) :] == [
        str(folder), "--host", "127.0.0.1", "--port", "8000",
        "--served-model-name", "m", "--quantization", "gptq", "--dtype", "bfloat16",
        "--max-model-len", "256", *(["--enforce-eager"] if on_cpu else []),
    ]  # fmt: skip


def test_given_arguments_win(folder: Path) -> None:
    arguments = serve_command(folder, "::1", 1, "m", ("--max-model-len", "64"))
    assert arguments.count("--max-model-len") == 1
    assert arguments[-2:] == ["--max-model-len", "64"]


def test_compilation_on_a_cpu_can_be_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "_vllm_version", lambda: None)
    arguments = serve_command(folder, "::1", 1, "m", ("--no-enforce-eager",))
    assert "--enforce-eager" not in arguments
    assert arguments[-1] == "--no-enforce-eager"


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="give a folder that quantlib wrote"):
        serve_command(tmp_path, "::1", 1, "m", ())


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
def test_a_quantized_model_answers_through_the_openai_api(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: Callable[..., Any],
    run_steps: Callable[..., Any],
    tmp_path: Path,
) -> None:
    made = run_steps(store, small_recipe(), tiny_llama)
    folder = tmp_path / "served"
    for name in made.checkpoint.facts["checkpoint_files"]:
        store.export_file(made.checkpoint.path(name), folder / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "quantlib", "deploy", "--model-path", str(folder)]
    command += ["--port", str(port), "--max-num-seqs", "1"]
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, log)
        body = {"model": "served", "prompt": "The engine", "max_tokens": 4, "temperature": 0}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            completion = json.loads(answer.read())
        assert completion["usage"]["completion_tokens"] == 4
        assert completion["choices"][0]["text"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        assert server.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
