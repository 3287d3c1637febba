"""Processes that are started with all their children in a group of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

_SECONDS_TO_END = 10.0
_SECONDS_TO_VANISH = 1.0
_LAST_LINES = 8
_ERROR_LINE = re.compile(r"^(?:\([^)]*\) |\[rank\d+\]: )?[\w.]*(?:Error|Exception|Interrupt)\b: ")


def end_group(process: subprocess.Popen[bytes], seconds: float = _SECONDS_TO_END) -> None:
    """Ends a process that was started with ``start_new_session``, and whatever it has started.

    Args:
        process: The leader of the group.
        seconds: What it gets to end by itself after SIGTERM.
    """
    if process.poll() is None:
        signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    signal_group(process, signal.SIGKILL)  # whatever it has started itself, too
    process.wait()
    # The others are no children of this process: it can only look whether they are gone.
    deadline = time.monotonic() + _SECONDS_TO_VANISH
    while living(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)


def living(group: int) -> list[int]:
    """The processes of a group, those left out that have ended and wait to be reaped."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, of_process = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(of_process) == group and state != "Z":
                found.append(int(entry.name))
    return found


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Sends a signal to every process of a group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def last_lines(log: Path) -> str:
    """What a log ends with: from its last error on, at most eight lines."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if _ERROR_LINE.match(line)]
    start = errors[-1] if errors else max(0, len(lines) - _LAST_LINES)
    return "\n".join(lines[start : start + _LAST_LINES])
