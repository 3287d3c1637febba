"""Runs a workflow on this machine."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.graph import Constants, Graph
from pipelines.local.calls import Values
from pipelines.local.scheduler import Execution, Scheduler
from pipelines.local.state import State, StepRun
from pipelines.local.status import open_status
from quantlib.errors import InvalidInputError, naming
from quantlib.runtime.cpus import available_cpus

SCHEMA = "quantlib/run/1"
RESULT_NAME = "run.json"
LOCK_NAME = ".lock"
_RESULT_BYTES = 64 << 10
"""More than the result of a run of 64 ranges takes."""


@dataclass(frozen=True)
class RunResult:
    """What came of a run.

    Attributes:
        graph: Name of the workflow.
        state: Succeeded, failed or interrupted.
        seconds: How long the run took.
        runs: Its steps, in an order that they could run in. One that was to run for each of
            something that never came to be is there once, as not run.
        failure: The step that failed first.
        signal: What interrupted the run.
    """

    graph: str
    state: State
    seconds: float
    runs: tuple[StepRun, ...]
    failure: StepRun | None = None
    signal: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """0, that of the step that failed, or 128 and the number of the signal."""
        if self.signal:
            return 128 + self.signal
        return (self.failure.exit_code or 1) if self.failure else 0

    @property
    def outputs(self) -> dict[str, Values]:
        """The outputs of every step that succeeded, by its name."""
        return {run.name: run.outputs for run in self.runs if run.state is State.SUCCEEDED}

    def to_json(self) -> dict[str, Any]:
        """The content of ``run.json``."""
        return {
            "schema": SCHEMA,
            "pipeline": self.graph,
            "state": self.state.value,
            "seconds": round(self.seconds, 3),
            "exit_code": self.exit_code,
            "tasks": {run.name: run.to_json() for run in self.runs},
        }


def run_graph(
    graph: Graph,
    settings: Mapping[str, Any],
    constants: Constants,
    execution: Execution,
    console: Console,
) -> RunResult:
    """Runs a workflow and writes ``run.json`` into the run's folder.

    SIGINT, SIGTERM and SIGHUP end every step and then the run. The console shows how it goes on.

    Raises:
        InvalidInputError: Another run is using the folder.
    """
    folder = execution.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _reserve(folder / RESULT_NAME, graph)
        result = asyncio.run(_run(graph, settings, constants, execution, console))
        _overwrite(folder / RESULT_NAME, json.dumps(result.to_json(), indent=1))
    return result


def _reserve(file: Path, graph: Graph) -> None:
    """Says that the run is under way, in a file with room for its result: the disk may get full."""
    text = json.dumps({"schema": SCHEMA, "pipeline": graph.name, "state": State.RUNNING.value})
    with naming(file):
        file.write_text(text.ljust(_RESULT_BYTES), encoding="utf-8")


def _overwrite(file: Path, text: str) -> None:
    with naming(file), file.open("r+b") as opened:
        opened.write(text.encode())
        opened.truncate()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder.

    The system lets go of it when this process and the steps that it has started have ended.
    """
    with (folder / LOCK_NAME).open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInputError.one(
                f"run folder {folder}",
                "another run is using it",
                "wait for it, or give another folder with --run-dir",
            ) from None
        yield


async def _run(
    graph: Graph,
    settings: Mapping[str, Any],
    constants: Constants,
    execution: Execution,
    console: Console,
) -> RunResult:
    started = time.monotonic()
    received: list[signal.Signals] = []
    with open_status(graph, console) as status:
        scheduler = Scheduler(
            graph, settings, constants, execution, available_cpus(), status.changed
        )
        work = asyncio.ensure_future(scheduler.run())

        loop = asyncio.get_running_loop()
        main = asyncio.current_task()

        def interrupt(number: signal.Signals) -> None:
            # The first signal ends the steps with a grace period, and a second one cuts it short.
            for task in asyncio.all_tasks(loop) - {main} if received else {work}:
                task.cancel()
            received.append(number)

        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in handled:
            loop.add_signal_handler(number, interrupt, number)
        try:
            await work
        except asyncio.CancelledError:
            if not received:
                raise
        finally:
            for number in handled:
                loop.remove_signal_handler(number)
    state = State.SUCCEEDED
    if received:
        state = State.INTERRUPTED
    elif scheduler.failure:
        state = State.FAILED
    return RunResult(
        graph=graph.name,
        state=state,
        seconds=time.monotonic() - started,
        runs=_in_order(graph, scheduler.runs, execution.folder),
        failure=scheduler.failure,
        signal=received[0] if received else None,
    )


def _in_order(graph: Graph, runs: list[StepRun], folder: Path) -> tuple[StepRun, ...]:
    for run in runs:
        if run.state is State.WAITING:
            run.state = State.NOT_RUN
    ordered = []
    for step in graph.steps:
        of_step = [run for run in runs if run.step == step.name]
        absent = StepRun(step.name, None, step.name, folder / step.name, State.NOT_RUN)
        ordered += sorted(of_step, key=lambda run: run.index or 0) or [absent]
    return tuple(ordered)
