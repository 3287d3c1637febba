"""Shows a run while it goes on: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.graph import Graph
from pipelines.local.state import State, StepRun

_STYLES = {
    State.WAITING: "dim",
    State.RUNNING: "bold",
    State.SUCCEEDED: "green",
    State.FAILED: "bold red",
    State.SKIPPED: "dim",
    State.INTERRUPTED: "yellow",
    State.NOT_RUN: "dim",
}
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_TAIL_BYTES = 4096


def log_tail(path: Path, lines: int = 1) -> list[str]:
    """The last lines of a log that are not empty, without colours and overwritten progress."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES * lines))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    plain = (_ESCAPES.sub("", line).split("\r")[-1].rstrip() for line in text.split("\n"))
    return [line for line in plain if line][-lines:]


class PlainStatus:
    """One line, with the time, for every step that starts or ends."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> PlainStatus:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def changed(self, run: StepRun) -> None:
        """Prints what has become of a step."""
        if run.state in (State.WAITING, State.NOT_RUN):
            return
        line = f"{time.strftime('%H:%M:%S')} {run.name}: {run.outcome}"
        if run.started is not None and run.state is not State.RUNNING:
            line += f" in {run.seconds:.1f} s"
        self._console.out(f"{line} ({run.error})" if run.error else line, highlight=False)


class LiveStatus:
    """A table of all steps that is redrawn in place."""

    def __init__(self, graph: Graph, console: Console) -> None:
        self._steps = [step.name for step in graph.steps]
        self._console = console
        self._runs: list[StepRun] = []
        self._live = Live(
            get_renderable=self._table, console=console, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> LiveStatus:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def changed(self, run: StepRun) -> None:
        """Notes a step; the table shows its state from then on."""
        if run not in self._runs:
            self._runs.append(run)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, expand=True)
        table.add_column("step", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("seconds", justify="right", no_wrap=True)
        table.add_column("", ratio=1, no_wrap=True, overflow="ellipsis")
        rows = list(self._rows(fold=False))
        if len(rows) > self._console.height - 2:
            rows = list(self._rows(fold=True))
        for name, state, seconds, last_line in rows:
            style = _STYLES[state]
            table.add_row(
                *(Text(cell, style) for cell in (name, state.value, seconds)),
                Text(last_line, "dim"),
            )
        return table

    def _rows(self, fold: bool) -> Iterator[tuple[str, State, str, str]]:
        runs_now = list(self._runs)
        for step in self._steps:
            runs = sorted((r for r in runs_now if r.step == step), key=lambda r: r.index or 0)
            if not runs:
                yield step, State.WAITING, "", ""
            shown = runs
            if fold and len(runs) > 1:
                shown = [run for run in runs if run.state in (State.RUNNING, State.FAILED)]
                for state, count in Counter(r.state for r in runs if r not in shown).items():
                    yield f"{step} ({count} of {len(runs)})", state, "", ""
            for run in shown:
                yield _row(run)


def _row(run: StepRun) -> tuple[str, State, str, str]:
    if run.started is None:
        return run.name, run.state, "", run.error
    if run.state is State.RUNNING:
        lines = log_tail(run.folder / "log.txt")
        return run.name, run.state, f"{time.monotonic() - run.started:.0f}", "".join(lines)
    return run.name, run.state, f"{run.seconds:.1f}", run.error


def open_status(graph: Graph, console: Console) -> PlainStatus | LiveStatus:
    """A live table where ``console`` is a terminal, else plain lines."""
    return LiveStatus(graph, console) if console.is_terminal else PlainStatus(console)
