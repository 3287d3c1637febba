"""Jobs in processes of their own, and what the kernel accounts to them."""

from __future__ import annotations

import os
import subprocess
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
