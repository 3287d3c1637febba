"""Jobs in processes of their own, and what the kernel accounts to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Usage:
    """What a job took.

    Attributes:
        status: How it ended; 0 where it succeeded.
        user_seconds: Of all its processes.
        peak_mib: Of the largest of them.
    """

    status: int
    user_seconds: float
    peak_mib: int


def run(command: list[str], log: Path, more: Mapping[str, str] | None = None) -> Usage:
    """Runs a command on one thread.

    Args:
        command: Of a process that starts all others of the job.
        log: Where its output goes.
        more: Of its environment.
    """
    environment = dict(os.environ) | ENVIRONMENT | (more or {})
    # Where it is set, every process compiles again what it imports: nothing of any tool's work.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    return Usage(status, round(usage.ru_utime, 1), usage.ru_maxrss // 1024)


def judged(original: Path, checkpoint: Path, windows: int, *more: str) -> Mapping[str, float]:
    """The figures of a checkpoint, which judging.py finds in a process of its own.

    Args:
        original: Of the model.
        checkpoint: Its folder; what is said goes to a file beside it.
        windows: Of held-out text, 512 tokens each.
        more: Options of judging.py.
    """
    script = str(Path(__file__).with_name("judging.py"))
    command = [sys.executable, script, str(original), str(checkpoint)]
    log = checkpoint.with_suffix(".judged")
    if run([*command, "--windows", str(windows), *more], log).status:
        sys.exit(f"{checkpoint} cannot be judged: {last_line(log)}")
    figures: Mapping[str, float] = json.loads(last_line(log))
    return figures


def last_line(log: Path) -> str:
    """What a process said last."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
