"""Progress of long work: a bar on a terminal, plain lines in a container log.

A line reads ``quantize 0:7: 5/7 blocks, 24.9 s, about 9 s left``. Who runs steps shows its end.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int], None]

_SECONDS_BETWEEN_LINES = 5.0
_BYTES_UNIT = "bytes"
_LINE = re.compile(r"(.+?): (\d+/\d+ \w+|\d+ %), [\d.]+ s(, about \d+ \w+ left)?")


@contextmanager
def progress_bar(label: str, total: int, unit: str) -> Iterator[Advance]:
    """Shows how far ``label`` is on standard error.

    Args:
        label: What is being done.
        total: How many units there are.
        unit: What is counted: ``blocks``, ``windows``, ``bytes``.

    Yields:
        A function to call with the number of units that were done since the last call.
    """
    if total == 0:
        yield lambda _: None
        return
    console = Console(stderr=True)
    if console.is_terminal:
        with _bar(console, unit) as progress:
            task = progress.add_task(label, total=total)
            yield lambda count: progress.advance(task, count)
    else:
        yield _line_printer(label, total, unit)


def _bar(console: Console, unit: str) -> Progress:
    counted = (
        TextColumn("{task.percentage:>3.0f}%") if unit == _BYTES_UNIT else MofNCompleteColumn()
    )
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=32),
        counted,
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console,
    )


def _line_printer(label: str, total: int, unit: str) -> Advance:
    started = last = time.monotonic()
    done = 0
    first: tuple[int, float] | None = None

    def advance(count: int) -> None:
        nonlocal done, last, first
        done += count
        now = time.monotonic()
        if first is None:
            # What comes before it is more than the others take: an engine that is started, or, of
            # work that goes on, less.
            first = (done, now) if count else None
        if done >= total or now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            counted = (
                f"{100 * done // total} %" if unit == _BYTES_UNIT else f"{done}/{total} {unit}"
            )
            line = f"{label}: {counted}, {now - started:.1f} s"
            if first is not None and first[0] < done < total:
                line += f", {_left((now - first[1]) * (total - done) / (done - first[0]))}"
            print(line, file=sys.stderr, flush=True)

    return advance


def _left(seconds: float) -> str:
    for unit, length in (("s", 1), ("min", 60)):
        if seconds < 100 * length:
            return f"about {seconds / length:.0f} {unit} left"
    return f"about {seconds / 3600:.0f} h left"


def progress_in(line: str) -> tuple[str, str] | None:
    """What is being done by a line of a log, and how far: ``5/7 blocks, about 9 s left``."""
    found = _LINE.fullmatch(line)
    return None if found is None else (found[1], f"{found[2]}{found[3] or ''}")
