"""Which processes there are."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path


def parent_and_state(process: int) -> tuple[int, str]:
    """The parent of a process and what it does; ``X`` where it is gone."""
    with suppress(OSError):
        stat = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return int(stat[1]), stat[0]
    return 0, "X"


def descendants(process: int) -> list[int]:
    """The living processes that one has started, and those that they have."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        ancestor = int(entry.name)
        while ancestor > 1 and ancestor != process:
            ancestor = parent_and_state(ancestor)[0]
        if ancestor == process and int(entry.name) != process:
            found.append(int(entry.name))
    return [one for one in found if parent_and_state(one)[1] not in "XZ"]


def marked(mark: str) -> list[int]:
    """The living processes with a word in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if mark.encode() in words and parent_and_state(int(entry.name))[1] not in "XZ":
                found.append(int(entry.name))
    return found


def are_gone(processes: list[int], seconds: float = 5.0) -> bool:
    """Whether processes have ended, or do so before long."""
    deadline = time.monotonic() + seconds
    while any(parent_and_state(process)[1] not in "XZ" for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
