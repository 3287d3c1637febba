"""Shows a run while it goes on: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import re
import threading
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
from quantlib.runtime.log import message_of
from quantlib.runtime.progress import progress_in

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
    return [message_of(line) for line in plain if line][-lines:]


def doing(run: StepRun) -> tuple[str, bool]:
    """What a step that runs does, by the last line of its log, and whether that says how far."""
    line = "".join(log_tail(run.folder / "log.txt"))
    found = progress_in(line)
    if found is None:
        return line, False
    label, how_far = found
    return how_far if label.startswith(run.step) else f"{how_far} ({label})", True


class PlainStatus:
    """One line, with the time, for every step that starts or ends, and now and then how far it is.

    Attributes:
        between: Seconds between two looks at how far the steps are.
    """

    def __init__(self, console: Console, between: float = 30.0) -> None:
        self.between = between
        self._console = console
        self._running: dict[StepRun, str] = {}
        self._ended = threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> PlainStatus:
        self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._looking.join()

    def changed(self, run: StepRun) -> None:
        """Prints what has become of a step."""
        self._running.pop(run, None)
        if run.state is State.RUNNING:
            self._running[run] = ""
        if run.state in (State.WAITING, State.NOT_RUN):
            return
        line = f"{run.name}: {run.outcome}"
        if run.started is not None and run.state is not State.RUNNING:
            line += f" in {run.seconds:.1f} s"
        self._print(f"{line} ({run.error})" if run.error else line)

    def _look(self) -> None:
        while not self._ended.wait(self.between):
            for run, before in list(self._running.items()):
                text, says_how_far = doing(run)
                if says_how_far and text != before and run in self._running:
                    self._running[run] = text
                    self._print(f"{run.name}: {text}")

    def _print(self, line: str) -> None:
        self._console.out(f"{time.strftime('%H:%M:%S')} {line}", highlight=False)


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
        return run.name, run.state, f"{time.monotonic() - run.started:.0f}", doing(run)[0]
    return run.name, run.state, f"{run.seconds:.1f}", run.error


def open_status(graph: Graph, console: Console) -> PlainStatus | LiveStatus:
    """A live table where ``console`` is a terminal, else plain lines."""
    return LiveStatus(graph, console) if console.is_terminal else PlainStatus(console)
