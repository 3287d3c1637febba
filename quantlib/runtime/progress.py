"""Progress of long work: a bar on a terminal, plain lines in a container log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Advance = Callable[[int], None]

_SECONDS_BETWEEN_LINES = 5.0
_BYTES_UNIT = "bytes"


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
        console=console,
    )


def _line_printer(label: str, total: int, unit: str) -> Advance:
    started = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if done >= total or now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            print(
                f"{label}: {done}/{total} {unit}, {now - started:.1f} s",
                file=sys.stderr,
                flush=True,
            )

    return advance
