"""How processes end with all that they have started, and what their logs end with."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

SECONDS_TO_END = 10.0
"""What a worker gets to end by itself."""

SECONDS_FOR_KEEPER = 5.0
"""What a keeper gets to end what its command has left."""

_SECONDS_TO_VANISH = 1.0
_LAST_LINES = 8
_ERROR_LINE = re.compile(r"^(?:\([^)]*\) |\[rank\d+\]: )?[\w.]*(?:Error|Exception|Interrupt)\b: ")
_IGNORED_SIGNALS = re.compile(r"^SigIgn:\s*([0-9a-f]+)", re.MULTILINE)
_LOGGED_ERROR = re.compile(
    r"^(?P<prefix>\([^)]*\) ERROR [^\[]*\[[^\]]*\] )(?:Worker proc |[\w.]*(?:Error|Exception)\b: )"
)
_OF_ANOTHER_PROCESS = re.compile(r"initialization failed|: cancelled$")


def end_kept(process: subprocess.Popen[bytes], seconds: float = SECONDS_TO_END) -> None:
    """Ends a command that was started through a keeper, and all that the command has started.

    Args:
        process: The keeper.
        seconds: What they get to end by themselves after SIGTERM.
    """
    for wait in (seconds, SECONDS_FOR_KEEPER):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # the second one has the keeper kill them
            with suppress(subprocess.TimeoutExpired):
                process.wait(wait)
    process.kill()
    process.wait()


def end_others(seconds: float = SECONDS_TO_END) -> None:
    """Ends every process of this process's group but this one.

    Args:
        seconds: What they get to end by themselves after SIGTERM.
    """
    own = os.getpid()

    def others() -> list[int]:
        return [process for process in living(os.getpgrp()) if process != own]

    _signal(others(), signal.SIGTERM)
    _end(others, time.monotonic() + seconds)


def end_all(remaining: Callable[[], list[int]]) -> None:
    """Kills processes.

    Args:
        remaining: Those that are left, also such as were started meanwhile.
    """
    _end(remaining, time.monotonic())


def _end(remaining: Callable[[], list[int]], deadline: float) -> None:
    """Waits for processes to end, and kills those that do not.

    What ignores SIGTERM comes last: Python's tracker of shared memory, which ends by itself when
    the others have, and frees what they could not.
    """
    for sparing in (True, False):
        _wait_until_none(remaining, deadline)
        left = remaining()
        _signal([p for p in left if not (sparing and _ignores_sigterm(p))], signal.SIGKILL)
        deadline = time.monotonic() + _SECONDS_TO_VANISH
    # They are no children of this process: it can only look whether they are gone.
    _wait_until_none(remaining, deadline)


def _wait_until_none(remaining: Callable[[], list[int]], deadline: float) -> None:
    while remaining() and time.monotonic() < deadline:
        time.sleep(0.01)


def _signal(processes: Iterable[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _ignores_sigterm(process: int) -> bool:
    with suppress(OSError):
        match = _IGNORED_SIGNALS.search(Path(f"/proc/{process}/status").read_text())
        return match is not None and bool(int(match[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def living(group: int) -> list[int]:
    """The processes of a group, those left out that have ended and wait to be reaped."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, of_process = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(of_process) == group and state != "Z":
                found.append(int(entry.name))
    return found


def last_lines(log: Path) -> str:
    """What a log ends with: from its last error on, at most eight lines.

    Where that error only says that another process of vLLM failed, it is what that one logged.
    """
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if _ERROR_LINE.match(line)]
    start = errors[-1] if errors else max(0, len(lines) - _LAST_LINES)
    found = lines[start:]
    if errors and _OF_ANOTHER_PROCESS.search(found[0]):
        found = _logged_error(lines[:start]) or found
    return "\n".join(found[:_LAST_LINES])


def _logged_error(lines: Sequence[str]) -> list[str]:
    for number in reversed(range(len(lines))):
        match = _LOGGED_ERROR.match(lines[number])
        if match and not _OF_ANOTHER_PROCESS.search(lines[number]):
            prefix = match["prefix"]
            following = takewhile(lambda line: line.startswith(prefix), lines[number:])
            return [line.removeprefix(prefix) for line in following]
    return []
