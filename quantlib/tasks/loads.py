"""How fast a model is served, measured by vLLM's own benchmark on the server that is asked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from quantlib.errors import StepError
from quantlib.runtime.keeper import kept
from quantlib.runtime.process_group import end_kept, last_lines
from quantlib.task_section import LoadsSection
from quantlib.tasks.outcome import Load, Loads
from quantlib.tasks.served import Served

LOADS_NAME = "loads.json"
_LOG = "bench.log"
_RESULT = "result.json"
_SECONDS_TO_STOP = 5.0
_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_FIELDS = {
    "requests_per_second": "request_throughput",
    "tokens_per_second": "output_throughput",
    "first_token_ms": "mean_ttft_ms",
    "first_token_p99_ms": "p99_ttft_ms",
    "between_tokens_ms": "mean_itl_ms",
    "between_tokens_p99_ms": "p99_itl_ms",
}
"""Our names of what ``vllm bench serve`` writes."""


def measure(section: LoadsSection, server: Served, folder: Path, scratch: Path) -> Loads:
    """Measures a server under each load.

    Args:
        section: Of the recipe.
        server: The server.
        folder: The model that it serves, with its tokenizer.
        scratch: For files in the making; holds the server's log.

    Raises:
        StepError: The benchmark failed, or a request was not answered.
    """
    found = tuple(
        _measured(section, concurrency, server, folder, scratch)
        for concurrency in section.concurrency
    )
    told = _KV_TOKENS.search(server.log.read_text(encoding="utf-8", errors="replace"))
    command = _arguments(section, section.concurrency[0], "http://SERVER", "MODEL", "MODEL")
    return Loads(
        loads=found,
        weights_bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        cache_tokens=int(told[1].replace(",", "")) if told else None,
        command=" ".join(["vllm", "bench", "serve", *command]),
    )


def _arguments(
    section: LoadsSection, concurrency: int, url: str, model: str, tokenizer: str
) -> list[str]:
    return [
        *("--backend", "openai", "--base-url", url, "--endpoint", "/v1/completions"),
        *("--model", model, "--tokenizer", tokenizer, "--dataset-name", "random"),
        *("--random-input-len", str(section.input_tokens)),
        *("--random-output-len", str(section.output_tokens)),
        *("--num-prompts", str(section.requests * concurrency)),
        *("--max-concurrency", str(concurrency), "--num-warmups", "1", "--ignore-eos"),
    ]


def _measured(
    section: LoadsSection, concurrency: int, server: Served, folder: Path, scratch: Path
) -> Load:
    arguments = _arguments(section, concurrency, server.url, server.name, str(folder))
    arguments += ["--percentile-metrics", "ttft,itl", "--metric-percentiles", "99"]
    arguments += ["--save-result", "--result-dir", str(scratch), "--result-filename", _RESULT]
    log = scratch / _LOG
    with log.open("wb") as output:
        running = subprocess.Popen(
            kept(
                [sys.executable, "-m", "quantlib.tasks.load_worker", *arguments, "--disable-tqdm"],
                _SECONDS_TO_STOP,
            ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code = running.wait(section.timeout)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        end_kept(running, _SECONDS_TO_STOP)
    result = scratch / _RESULT
    if code != 0 or not result.exists():
        how = f"took more than {section.timeout} s" if code is None else f"ended with {code}"
        raise StepError("tasks", f"vllm bench serve {how}; its log ends with:\n{last_lines(log)}")
    told = json.loads(result.read_text(encoding="utf-8"))
    result.unlink()
    wanted = section.requests * concurrency
    if told["completed"] != wanted:
        raise StepError(
            "tasks", f"vllm bench serve: {told['completed']} of {wanted} requests were answered"
        )
    figures = {name: float(told[key]) for name, key in _FIELDS.items()}
    return Load(concurrency=concurrency, requests=wanted, **figures)
