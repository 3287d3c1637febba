"""``quantlib deploy``: with a server that only plays vLLM's part, and once with vLLM."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from oci_registry import oci_registry
from ports import free_ports
from report.conftest import commit_run

from quantlib.cli.deploy import default_name, deploy
from quantlib.errors import InvalidInputError
from quantlib.steps.publish import publish
from quantlib.store import LocalStore

PLAYED = """
import http.server, os, subprocess, sys
def option(name):
    return sys.argv[sys.argv.index(name) + 1]
played = os.environ["PLAYED"]
print("INFO starting", sys.argv, flush=True)
child = subprocess.Popen(["sleep", "600"])
with open(os.environ["PIDS"], "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
if played == "dies":
    print("Traceback (most recent call last):")
    sys.exit("ValueError: no kernel for this")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if played == "healthy" else 503)
        self.end_headers()
    def log_message(self, *_):
        pass
try:
    http.server.HTTPServer((option("--host"), int(option("--port"))), Handler).serve_forever()
except KeyboardInterrupt:
    print("INFO goodbye", flush=True)
"""

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 8,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    arguments = {"quantization": "gptq", "dtype": "bfloat16"}
    (model / "vllm_config.json").write_text(json.dumps(arguments))
    (model / "config.json").write_text(json.dumps(CONFIG))
    return model


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def played(tmp_path: Path) -> dict[str, str]:
    """The environment in which a package called vllm plays the server."""
    for module in ("cli/main.py", "openai/api_server.py"):
        path = tmp_path / "path" / "vllm" / "entrypoints" / module
        path.parent.mkdir(parents=True)
        path.write_text(PLAYED)
    (tmp_path / "path" / "vllm" / "__init__.py").touch()
    paths = [str(tmp_path / "path"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "PIDS": str(tmp_path / "pids"), "PLAYED": ""}


@contextmanager
def deployed(
    folder: Path | str, port: int, log: Path, environment: dict[str, str], *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "quantlib", "deploy", "--model", str(folder)]
    command += ["--port", str(port), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def wait_for(text: str, log: Path, process: subprocess.Popen[bytes], limit: float = 180) -> str:
    deadline = time.monotonic() + limit
    while text not in (said := log.read_text()):
        assert process.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.1)
    return said


def require_gone(pids: Path) -> None:
    deadline = time.monotonic() + 60
    for pid in map(int, pids.read_text().split()):
        with suppress(FileNotFoundError, ProcessLookupError):
            # Orphans that nobody reaps stay as zombies.
            while "(zombie)" not in Path(f"/proc/{pid}/status").read_text():
                assert time.monotonic() < deadline, f"{pid} is still there"
                time.sleep(0.1)


def test_the_command_comes_from_the_checkpoint(folder: Path) -> None:
    printed = CliRunner().invoke(deploy, ["--model", str(folder), "--name", "m", "--print"])
    assert printed.exit_code == 0
    words = shlex.split(printed.output)
    at = words.index(str(folder))
    assert words[at : at + 9] == [
        str(folder), "--host", "127.0.0.1", "--port", "8000", "--served-model-name", "m",
        "--dtype", "bfloat16",
    ]  # fmt: skip
    assert "--quantization" not in words and "--max-model-len" not in words


def test_a_folder_chooses_no_arguments_of_its_own(folder: Path) -> None:
    words = {"trust_remote_code": True, "middleware": "evil.Middleware", "model": "other/one"}
    (folder / "vllm_config.json").write_text(json.dumps({"dtype": "bfloat16"} | words))
    done = CliRunner().invoke(deploy, ["--model", str(folder), "--print"])
    assert isinstance(done.exception, InvalidInputError)
    assert done.output == ""
    assert "trust_remote_code: Extra inputs are not permitted" in str(done.exception)


def test_a_size_that_does_not_work_is_refused(folder: Path) -> None:
    command = ["--model", str(folder), "--print", "--tensor-parallel-size"]
    done = CliRunner().invoke(deploy, [*command, "3"])
    assert isinstance(done.exception, InvalidInputError)
    assert "2 attention heads cannot be divided by 3" in str(done.exception)
    assert str(done.exception).endswith("sizes that work: 1, 2")
    assert "--tensor-parallel-size 2" in CliRunner().invoke(deploy, [*command, "2"]).output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_is_waited_for_and_stopped_with_its_children(
    folder: Path, port: int, tmp_path: Path, played: dict[str, str], number: signal.Signals
) -> None:
    log = tmp_path / "said"
    environment = played | {"PLAYED": "healthy", "http_proxy": "http://127.0.0.1:9"}
    with deployed(folder, port, log, environment) as process:
        said = wait_for("curl http://", log, process)
        assert "waiting for vLLM: 0 s" in said
        assert f"curl http://127.0.0.1:{port}/v1/completions -H 'Content-Type: " in said
        (written,) = [line for line in said.splitlines() if line.startswith("log: ")]
        vllm_log = Path(written.removeprefix("log: "))
        assert "INFO starting" in vllm_log.read_text()
        process.send_signal(number)
        assert process.wait(30) == 0
    require_gone(tmp_path / "pids")
    assert log.read_text().endswith("stopped\n")
    assert not vllm_log.parent.exists()


def test_a_server_that_dies_early_is_quoted(
    folder: Path, port: int, tmp_path: Path, played: dict[str, str]
) -> None:
    log = tmp_path / "said"
    options = ("--log", str(tmp_path / "vllm.log"))
    with deployed(folder, port, log, played | {"PLAYED": "dies"}, *options) as process:
        assert process.wait(30) == 1
    assert log.read_text().endswith(
        "error: the server ended before it was ready (exit code 1); its log is "
        f"{tmp_path}/vllm.log and ends with:\nValueError: no kernel for this\n"
    )
    require_gone(tmp_path / "pids")


def test_a_server_that_is_never_healthy_is_given_up(
    folder: Path, port: int, tmp_path: Path, played: dict[str, str]
) -> None:
    log = tmp_path / "said"
    environment = played | {"PLAYED": "hangs"}
    with deployed(folder, port, log, environment, "--timeout", "1") as process:
        assert process.wait(30) == 1
    assert "the server was not ready after 1 s" in log.read_text()
    require_gone(tmp_path / "pids")


def test_a_port_in_use_is_found_before_anything_starts(
    folder: Path, tmp_path: Path, played: dict[str, str]
) -> None:
    log = tmp_path / "said"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with deployed(folder, port, log, played | {"PLAYED": "healthy"}) as process:
            assert process.wait(30) == 2
    assert f"--port {port}: cannot be listened on: Address already in use" in log.read_text()
    assert not (tmp_path / "pids").exists()


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM wheel for this platform")
def test_a_quantized_model_answers_through_the_openai_api(
    store: LocalStore,
    tiny_llama: Path,
    small_recipe: Callable[..., Any],
    run_steps: Callable[..., Any],
    tmp_path: Path,
    port: int,
) -> None:
    made = run_steps(store, small_recipe(), tiny_llama)
    folder = tmp_path / "served"
    made.export(folder)
    log = tmp_path / "said"
    with deployed(folder, port, log, {}, "--max-num-seqs", "1") as process:
        said = wait_for("curl http://", log, process)
        *_, line = said[: said.rindex("}") + 2].splitlines()
        body = shlex.split(line)[-1]
        assert json.loads(body)["model"] == "served"
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions",
            body.encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            completion = json.loads(answer.read())
        assert completion["usage"]["completion_tokens"] == 8
        assert completion["choices"][0]["text"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert log.read_text().endswith("stopped\n")


def test_a_published_folder_is_called_as_it_is_published(tmp_path: Path) -> None:
    folder = tmp_path / ("3f9a" * 16)
    folder.mkdir()
    assert default_name(folder) == folder.name
    (folder / "manifest.json").write_text('{"name": "SmolLM2"}')
    assert default_name(folder) == "SmolLM2"
    for odd in ("[", "[]", '{"name": 3}', '{"name": ""}', "{}"):
        (folder / "manifest.json").write_text(odd)
        assert default_name(folder) == folder.name


def test_what_is_published_elsewhere_is_no_folder_to_print() -> None:
    done = CliRunner().invoke(deploy, ["--model", "oci://registry.example.org/tiny:1", "--print"])
    assert isinstance(done.exception, InvalidInputError)
    assert "is brought where it is served; leave it out" in str(done.exception)


def test_an_image_is_served_from_a_folder_that_goes_with_it(
    port: int, tmp_path: Path, played: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {
        "config.json": json.dumps(CONFIG).encode(),
        "vllm_config.json": b'{"quantization": "gptq", "dtype": "bfloat16"}',
        "model.safetensors": b"weights",
    }
    log, places = tmp_path / "said", tmp_path / "temporary"
    places.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(places))
    with oci_registry(tmp_path / "registry") as registry:
        run, destination = commit_run(tmp_path, weights=weights), f"oci://{registry}/team/tiny"
        publish(run.store, run.recipe, f"{destination}:1", run.checkpoint, run.validation)
        environment = played | {"PLAYED": "healthy", "TMPDIR": str(places)}
        with deployed(f"{destination}:1", port, log, environment) as process:
            said = wait_for("curl http://", log, process)
            [folder] = places.glob("quantlib-brought-*/Tiny-Llama-6")
            assert f"{folder} --host 127.0.0.1" in said
            assert "--served-model-name Tiny-Llama-6 --dtype bfloat16" in said
            assert (folder / "model.safetensors").read_bytes() == b"weights"
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    assert list(places.iterdir()) == []
