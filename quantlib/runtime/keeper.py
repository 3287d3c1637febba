"""Runs a command and ends all that it has started, in whatever session, when it ends.

    python -m quantlib.runtime.keeper PARENT GRACE AFTER COMMAND...

So it does when the process PARENT, which has started the keeper, is gone, also by SIGKILL; and
after SIGTERM, which the command's group gets first, with GRACE seconds to end by itself. A second
SIGTERM cuts them short. The keeper ends as the command did: with its exit code, or by its signal.

What a command has begun elsewhere, such as a container, ends by AFTER, a command as a JSON list,
which is run where the keeper had to end the command itself; an empty list is none.

It adopts what its descendants leave behind (it is their subreaper), so that it knows all of them.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from quantlib.runtime.process_group import end_all

_DIE_WITH_PARENT, _ADOPT = 1, 36  # PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER
_SECONDS_BETWEEN_LOOKS = 0.2
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_SECONDS_FOR_AFTER = 60.0
_CANNOT_START = 127


def kept(command: Sequence[str], grace: float, after: Sequence[str] = ()) -> list[str]:
    """The command that keeps a command of this process.

    Start it in a session or a group of its own, so that a signal from the keyboard reaches the
    command through its keeper only.

    Args:
        command: What to run.
        grace: Seconds that it gets to end after SIGTERM.
        after: A command that ends what it has begun elsewhere, where it did not end by itself.
    """
    keeper = [sys.executable, "-m", __name__, str(os.getpid()), str(grace)]
    return [*keeper, json.dumps(list(after)), *command]


def main() -> None:
    """Keeps the command of the arguments."""
    parent, grace = int(sys.argv[1]), float(sys.argv[2])
    after, command = json.loads(sys.argv[3]), sys.argv[4:]
    _prctl(_ADOPT, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        child = subprocess.Popen(
            command, close_fds=False, start_new_session=True, preexec_fn=_prepare_child
        )
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        sys.exit(_CANNOT_START)
    status = _attend(child.pid, parent, grace)
    end_all(_descendants)
    if after and status is None:
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(after, timeout=_SECONDS_FOR_AFTER, capture_output=True)
    _end_as(status)


def _prepare_child() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    _prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _attend(child: int, parent: int, grace: float) -> int | None:
    """Waits for the command's end: its wait status, or None where it has to be ended."""
    deadline = None
    while True:
        received = signal.sigtimedwait(_SIGNALS, _SECONDS_BETWEEN_LOOKS)
        for ended, status in _reaped():
            if ended == child:
                return status
        if os.getppid() != parent:
            return None
        if received is not None and received.si_signo != signal.SIGCHLD:
            if deadline is not None:
                return None
            deadline = time.monotonic() + grace
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            return None


def _reaped() -> list[tuple[int, int]]:
    ended = []
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append(found)
    return ended


def _descendants() -> list[int]:
    """The living processes that this one has started, and those that they have."""
    _reaped()
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, of = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(of), []).append(int(entry.name))
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _end_as(status: int | None) -> None:
    """Ends as the command did."""
    code = -signal.SIGKILL if status is None else os.waitstatus_to_exitcode(status)
    if code >= 0:
        sys.exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
    os.kill(os.getpid(), -code)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main()
