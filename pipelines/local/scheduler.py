"""Runs the steps of a workflow in the order of what they need, several at once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components._images import Images
from pipelines.graph import Asked, Constant, Constants, Graph, Item, Output, Source, Step
from pipelines.interface import interface_of
from pipelines.local.calls import Artifact, Call, Values
from pipelines.local.gpus import Gpus, wanted
from pipelines.local.processes import Runner
from pipelines.local.state import State, StepRun
from pipelines.profiles import Retries
from quantlib.errors import FINAL_EXIT_CODES, QuantlibError, StepError, os_error_line
from quantlib.runtime.code_version import CODE_VARIABLE, code_version
from quantlib.runtime.log import RUN_VARIABLE
from quantlib.telemetry.settings import NOTIFY_VARIABLE


@dataclass(frozen=True)
class Execution:
    """How a workflow is run on this machine.

    Attributes:
        folder: The run's folder: logs and small outputs, a folder for each step.
        runner: What starts the steps.
        parallel: How many steps may run at once.
        retries: How often and when a step that failed is started again. Invalid input and a
            checkpoint that was refused (exit codes 2 and 3) stay what they are.
        images: What the steps run in, where the runner starts containers.
        gpus: The GPUs that steps share, as ``CUDA_VISIBLE_DEVICES`` names them.
    """

    folder: Path
    runner: Runner
    parallel: int
    retries: Retries
    images: Images
    gpus: tuple[str, ...] = ()


class Scheduler:
    """Runs one workflow once, on so many CPUs; ``changed`` is told when a step's state is another.

    Attributes:
        runs: The steps so far.
        failure: The one that failed first.
    """

    def __init__(
        self,
        graph: Graph,
        settings: Mapping[str, Any],
        constants: Constants,
        execution: Execution,
        cpus: int,
        changed: Callable[[StepRun], None],
    ) -> None:
        self.runs: list[StepRun] = []
        self.failure: StepRun | None = None
        self._graph, self._settings, self._constants = graph, settings, constants
        self._execution, self._cpus, self._changed = execution, cpus, changed
        self._slots = asyncio.Semaphore(execution.parallel)
        self._gpus = Gpus(execution.gpus)
        self._outputs: dict[str, list[Values]] = {}

    async def run(self) -> None:
        """Runs it to its end; :attr:`runs` and :attr:`failure` say what came of it.

        Cancelling it ends every step.
        """
        running: dict[str, asyncio.Task[State]] = {}
        async with asyncio.TaskGroup() as group:
            for step in self._graph.steps:
                needed = [running[name] for name in step.needs]
                running[step.name] = group.create_task(self._run(step, needed))

    async def _run(self, step: Step, needed: list[asyncio.Task[State]]) -> State:
        if needed:  # asyncio.wait, since a task that awaits another would cancel it too
            await asyncio.wait(needed)
        states = {task.result() for task in needed}
        if states & {State.FAILED, State.NOT_RUN}:
            return self._leave_out(step, State.NOT_RUN)
        if State.SKIPPED in states or not self._holds(step):
            return self._leave_out(step, State.SKIPPED)
        items = [None] if step.each is None else self._parameter(step.each)
        width = min(len(items), self._constants.parallel)
        slots = asyncio.Semaphore(width)
        runs = [
            self._add(step, None if step.each is None else index, item)
            for index, item in enumerate(items)
        ]
        async with asyncio.TaskGroup() as group:
            for run, item in zip(runs, items, strict=True):
                group.create_task(self._run_one(step, run, item, slots, width))
        self._outputs[step.name] = [run.outputs for run in runs]
        for state in (State.FAILED, State.NOT_RUN):
            if any(run.state is state for run in runs):
                return state
        return State.SUCCEEDED

    async def _run_one(
        self, step: Step, run: StepRun, item: Any, slots: asyncio.Semaphore, width: int
    ) -> None:
        async with slots, self._slots:
            inputs = self._inputs(step, item)
            try:
                async with self._gpus.lend(run.name, wanted(inputs)) as gpus:
                    if self.failure:
                        self._set_state(run, State.NOT_RUN)
                        return
                    run.folder.mkdir(parents=True, exist_ok=True)
                    run.started = time.monotonic()
                    self._set_state(run, State.RUNNING)
                    call = self._call(step, run, inputs, width, gpus)
                    call.log.unlink(missing_ok=True)
                    await self._attempt(step, run, call)
            except asyncio.CancelledError:
                self._set_state(run, State.INTERRUPTED)
                raise
            except QuantlibError as error:
                run.error = str(error)
            except OSError as error:
                run.error = f"step {run.name}: {os_error_line(error, run.folder)}"
            self._set_state(run, State.FAILED if run.error else State.SUCCEEDED)

    def _call(
        self, step: Step, run: StepRun, inputs: Values, width: int, gpus: tuple[str, ...]
    ) -> Call:
        return Call(
            step.name,
            run.name,
            self._execution.images.of(step.name),
            {
                CODE_VARIABLE: code_version(),
                RUN_VARIABLE: self._execution.folder.name,
                NOTIFY_VARIABLE: "",  # the runner tells
            },
            max(1, self._cpus // min(self._execution.parallel, width)),
            run.folder,
            inputs,
            interface_of(step.name),
            gpus,
        )

    async def _attempt(self, step: Step, run: StepRun, call: Call) -> None:
        retries = self._execution.retries
        started = time.monotonic()
        while True:
            call.prepare()
            run.attempts += 1
            run.exit_code = await self._execution.runner.run(call)
            if run.exit_code == 0:
                run.outputs = call.collect()
                return
            delay = retries.delay * retries.factor ** (run.attempts - 1)
            late = time.monotonic() - started + delay > retries.limit
            final = run.exit_code in FINAL_EXIT_CODES or not step.retried
            if final or late or run.attempts > retries.count:
                raise StepError(run.name, _describe(run.exit_code))
            await asyncio.sleep(delay)

    def _inputs(self, step: Step, item: Any) -> Values:
        interface = interface_of(step.name)
        parameters = {
            name: self._value(source, item)
            for name, source in step.inputs.items()
            if name in interface.parameters
        }
        artifacts: dict[str, tuple[Artifact, ...]] = {
            name: tuple(
                artifact
                for values in self._outputs[source.step]
                for artifact in values.artifacts[source.name]
            )
            for name, source in step.inputs.items()
            if name in interface.artifacts and isinstance(source, Output)
        }
        return Values(parameters, artifacts)

    def _value(self, source: Source, item: Any) -> Any:
        match source:
            case Asked(name):
                return self._settings[name]
            case Constant():
                return self._constants.value(source)
            case Output():
                return self._parameter(source)
            case Item():
                return item

    def _parameter(self, source: Output) -> Any:
        (values,) = self._outputs[source.step]
        return values.parameters[source.name]

    def _holds(self, step: Step) -> bool:
        return step.when is None or self._parameter(step.when.source) == step.when.value

    def _add(self, step: Step, index: int | None, item: Any) -> StepRun:
        name = step.name if index is None else f"{step.name}[{item}]"
        run = StepRun(step.name, index, name, self._execution.folder.absolute() / name)
        self.runs.append(run)
        self._changed(run)
        return run

    def _set_state(self, run: StepRun, state: State) -> State:
        run.state = state
        if run.started is not None:
            run.seconds = time.monotonic() - run.started
        if state is State.FAILED:
            self.failure = self.failure or run
        self._changed(run)
        return state

    def _leave_out(self, step: Step, state: State) -> State:
        return self._set_state(self._add(step, None, None), state)


def _describe(exit_code: int) -> str:
    with contextlib.suppress(ValueError):
        return f"exited with code {exit_code} ({signal.Signals(exit_code - 128).name})"
    return f"exited with code {exit_code}"
