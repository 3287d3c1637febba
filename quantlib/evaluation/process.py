"""Starts a worker, follows it, and leaves nothing of it behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from quantlib.errors import QuantlibError
from quantlib.evaluation.job import Job

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads sleep
}
_SECONDS_TO_END = 10.0
_LAST_LINES = 8
_ERROR_LINE = re.compile(r"^(?:\([^)]*\) |\[rank\d+\]: )?[\w.]*(?:Error|Exception|Interrupt)\b: ")


def run_worker(
    job: Job, label: str, log: Path, log_address: str, window_done: Callable[[], None]
) -> None:
    """Runs a job in a process group of its own, which is gone when this returns or raises.

    Args:
        job: What to do.
        label: Which model it is, for messages.
        log: Gets everything that the process prints.
        log_address: Where the caller keeps the log, for messages.
        window_done: Called after each window.

    Raises:
        QuantlibError: The process failed; the message ends with the last lines of its log.
    """
    job_file = Path(job.output) / "job.json"
    job.write(job_file)
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "quantlib.evaluation.worker", str(job_file), str(write_end)]
    with os.fdopen(read_end) as progress, log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(write_end,),
                env=_ENVIRONMENT | os.environ,
            )
        finally:
            os.close(write_end)
        try:
            for _ in progress:
                window_done()
            status = process.wait()
        finally:
            _end_group(process)
    if status != 0:
        raise QuantlibError(
            f"{label}: {_in_words(status)}; its log is {log_address} and ends with:\n"
            f"{last_lines(log)}"
        )


def _end_group(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_END)
    _signal_group(process, signal.SIGKILL)  # whatever it has started itself, too
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _in_words(status: int) -> str:
    if status >= 0:
        return f"the engine failed (exit code {status})"
    hint = ", most likely for lack of memory" if -status == signal.SIGKILL else ""
    return f"the engine was killed by {signal.Signals(-status).name}{hint}"


def last_lines(log: Path) -> str:
    """What a log ends with: from its last error on, at most eight lines."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if _ERROR_LINE.match(line)]
    start = errors[-1] if errors else max(0, len(lines) - _LAST_LINES)
    return "\n".join(lines[start : start + _LAST_LINES])
