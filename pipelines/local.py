"""Runs a compiled pipeline on this machine.

The file is the one that Kubeflow Pipelines takes. ``kfp.local`` cannot run it: version 2.17 refuses
container components as subprocesses and does not pass an upstream output into a loop.
"""

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

from pipelines.ir import Pipeline
from pipelines.process import Runner
from pipelines.reader import load_pipeline
from pipelines.scheduler import Scheduler, State, StepRun
from pipelines.status import open_status
from pipelines.values import Values, convert
from quantlib.errors import InvalidInputError, Problem, naming
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
        pipeline: Name of the pipeline.
        state: Succeeded, failed or interrupted.
        seconds: How long the run took.
        runs: Its steps, in an order that they could run in. A step that a loop never came to is
            there once, as not run.
        failure: The step that failed first.
        signal: What interrupted the run.
    """

    pipeline: str
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
            "pipeline": self.pipeline,
            "state": self.state.value,
            "seconds": round(self.seconds, 3),
            "exit_code": self.exit_code,
            "tasks": {run.name: _run_to_json(run) for run in self.runs},
        }


def run_pipeline(
    file: Path,
    parameters: Mapping[str, Any],
    folder: Path,
    runner: Runner,
    parallel: int,
    console: Console,
    retries: int = 0,
) -> RunResult:
    """Runs a compiled pipeline and writes ``run.json`` into the run's folder.

    SIGINT, SIGTERM and SIGHUP end every step and then the run.

    Args:
        file: The compiled pipeline.
        parameters: The pipeline's parameters.
        folder: The run's folder: logs and small outputs, a folder for each step.
        runner: What starts the steps.
        parallel: How many steps may run at once.
        console: Where to show the progress.
        retries: How often a step that failed is started again, at most as often as the pipeline
            says, which is meant for a cluster.

    Raises:
        InvalidInputError: The file is not supported, the parameters are not the pipeline's, or
            another run is using the folder.
    """
    pipeline = load_pipeline(file)
    arguments = _bind(pipeline, parameters)
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _reserve(folder / RESULT_NAME, pipeline)
        result = asyncio.run(_run(pipeline, arguments, folder, runner, parallel, console, retries))
        _overwrite(folder / RESULT_NAME, json.dumps(result.to_json(), indent=1))
    return result


def _reserve(file: Path, pipeline: Pipeline) -> None:
    """Says that the run is under way, in a file with room for its result: the disk may get full."""
    text = json.dumps({"schema": SCHEMA, "pipeline": pipeline.name, "state": State.RUNNING.value})
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
    pipeline: Pipeline,
    parameters: Mapping[str, Any],
    folder: Path,
    runner: Runner,
    parallel: int,
    console: Console,
    retries: int,
) -> RunResult:
    started = time.monotonic()
    received: list[signal.Signals] = []
    with open_status(pipeline, console) as status:
        cpus = available_cpus()
        scheduler = Scheduler(pipeline, folder, runner, parallel, cpus, status.changed, retries)
        work = asyncio.ensure_future(scheduler.run(parameters))

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
        pipeline=pipeline.name,
        state=state,
        seconds=time.monotonic() - started,
        runs=_in_order(pipeline, scheduler.runs, folder),
        failure=scheduler.failure,
        signal=received[0] if received else None,
    )


def _bind(pipeline: Pipeline, parameters: Mapping[str, Any]) -> dict[str, Any]:
    specs = pipeline.root.inputs.parameters
    problems = [
        Problem(f"parameter {name}", "the pipeline has none of this name")
        for name in parameters.keys() - specs.keys()
    ]
    bound = {}
    for name, spec in specs.items():
        value = parameters.get(name, spec.default)
        if value is not None:
            bound[name] = convert(value, spec, f"parameter {name}")
        elif not spec.optional:
            problems.append(Problem(f"parameter {name}", "is missing"))
    if problems:
        raise InvalidInputError(problems)
    return bound


def _in_order(pipeline: Pipeline, runs: list[StepRun], folder: Path) -> tuple[StepRun, ...]:
    for run in runs:
        if run.state is State.WAITING:
            run.state = State.NOT_RUN
    known = {run.step for run in runs}
    absent = [
        StepRun(step, None, step, folder / step, State.NOT_RUN)
        for step in pipeline.steps
        if step not in known
    ]
    order = {step: index for index, step in enumerate(pipeline.steps)}
    # A loop or a condition that failed by itself is no step: it comes last.
    return tuple(
        sorted(
            [*runs, *absent],
            key=lambda run: (order.get(run.step, len(order)), run.iteration or 0),
        )
    )


def _run_to_json(run: StepRun) -> dict[str, Any]:
    return {
        "state": run.state.value,
        "seconds": round(run.seconds, 3),
        "attempts": run.attempts,
        "exit_code": run.exit_code,
        "error": run.error,
        "log": str(run.folder / "log.txt"),
        "outputs": {
            "parameters": dict(run.outputs.parameters),
            "artifacts": {
                name: [
                    {
                        "path": str(artifact.path),
                        "type": artifact.schema_title,
                        "metadata": dict(artifact.metadata),
                    }
                    for artifact in artifacts
                ]
                for name, artifacts in run.outputs.artifacts.items()
            },
        },
    }
