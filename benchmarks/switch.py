"""What becomes of requests when a server of vLLM is replaced, by how its pod ends.

    python benchmarks/switch.py [--seconds 6] [--clients 4]

Kubernetes takes a pod out of its Service and tells its container to stop at the same moment, so
requests still come for as long as the news takes. Clients here send one request after the other to
vLLM's own server on a tiny random model; at some moment the pod is "deleted": after the pause of a
preStop hook the server gets SIGTERM, until the news has spread new requests come too, and after the
grace period whatever is left gets SIGKILL.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

SPREADING_SECONDS = 2.0
"""How long requests still come to a pod that is no longer in its Service."""

GRACE_SECONDS = 30.0
"""From a pod's deletion to SIGKILL: Kubernetes' default, the preStop hook included."""


@dataclass(frozen=True)
class Case:
    """How a pod ends.

    Attributes:
        pause: Seconds that its preStop hook sleeps before the server gets SIGTERM.
        timeout: Of vLLM's ``--shutdown-timeout``, seconds.
    """

    pause: float
    timeout: int


@dataclass(frozen=True)
class Result:
    """What came of it.

    Attributes:
        outcomes: How requests ended that ended after the deletion.
        longest: Seconds of the longest one that was answered whole.
        gone: Seconds from the deletion until the server was gone.
    """

    outcomes: Counter[str]
    longest: float
    gone: float


CASES = (Case(0, 0), Case(0, 15), Case(5, 0), Case(5, 15))


def make_model(folder: Path) -> None:
    """Writes a random model of a few layers; tokens are numbers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def start(folder: Path, port: int, timeout: int, log: Path) -> subprocess.Popen[bytes]:
    """Starts a server and waits until it is ready."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(folder), "--served-model-name", "m", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--skip-tokenizer-init", "--max-model-len", "8192"]
    command += ["--enforce-eager", "--shutdown-timeout", str(timeout)]
    environment = os.environ | {
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).close()
            return server
        except OSError:
            if server.poll() is not None:
                raise SystemExit(log.read_text()[-3000:]) from None
            time.sleep(0.5)


def ask(connection: http.client.HTTPConnection, tokens: int) -> str:
    """Sends a request; how it ended, in a word or two."""
    body = {"model": "m", "prompt": [1, 2, 3], "max_tokens": tokens, "ignore_eos": True}
    try:
        connection.request(
            "POST",
            "/v1/completions",
            json.dumps(body | {"detokenize": False}),
            {"Content-Type": "application/json"},
        )
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return type(error).__name__
    if answer.status != 200:
        return f"HTTP {answer.status}"
    reason = json.loads(text)["choices"][0]["finish_reason"]
    return "ok" if reason == "length" else f"HTTP 200, {reason}"


def measure(folder: Path, case: Case, clients: int, seconds: float, work: Path) -> Result:
    """Lets a server be replaced while clients ask it."""
    port = 18000 + os.getpid() % 1000
    server = start(folder, port, case.timeout, work / "log.txt")

    def connection() -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    ask(connection(), 16)
    started = time.monotonic()
    # Beside one another, as later, which costs each of them some speed.
    trials = [threading.Thread(target=ask, args=(connection(), 256)) for _ in range(clients)]
    for trial in trials:
        trial.start()
    for trial in trials:
        trial.join()
    tokens = min(8000, int(256 / (time.monotonic() - started) * seconds))
    outcomes: Counter[str] = Counter()
    longest = 0.0
    deleted = threading.Event()
    last = float("inf")

    def client(number: int) -> None:
        nonlocal longest
        time.sleep(number * seconds / clients)
        kept = connection()
        while time.monotonic() < last:
            began = time.monotonic()
            outcome = ask(kept, tokens)
            if deleted.is_set():
                outcomes[outcome] += 1
                if outcome == "ok":
                    longest = max(longest, time.monotonic() - began)
            if outcome != "ok":
                time.sleep(0.2)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(2.5 * seconds)
    deleted.set()
    moment = time.monotonic()
    last = moment + SPREADING_SECONDS
    time.sleep(case.pause)
    server.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(moment + GRACE_SECONDS - time.monotonic())
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    gone = time.monotonic() - moment
    for thread in threads:
        thread.join()
    return Result(outcomes, longest, gone)


def main() -> None:
    """Measures every case and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="of a request, about")
    parser.add_argument("--clients", type=int, default=4)
    arguments = parser.parse_args()
    table = Table("preStop", "--shutdown-timeout", "answered whole", "failed", "gone after")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_model(work / "model")
        for case in CASES:
            found = measure(work / "model", case, arguments.clients, arguments.seconds, work)
            whole = found.outcomes.pop("ok", 0)
            failed = ", ".join(f"{count} {outcome}" for outcome, count in found.outcomes.items())
            table.add_row(
                f"{case.pause:.0f} s",
                f"{case.timeout} s",
                f"{whole}, up to {found.longest:.0f} s",
                failed or "0",
                f"{found.gone:.0f} s",
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
