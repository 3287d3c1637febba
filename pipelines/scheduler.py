"""Runs the tasks of a compiled pipeline in the order that its DAGs ask for.

Every task waits for the tasks that it depends on, evaluates its condition, and then runs its
container, its DAG, or its loop. A task whose condition is false is skipped, and so is all that
depends on it, as on the cluster. When a step fails, no other is started, but those that run may
end: what they finish is in the store and need not be done again.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipelines.expressions import evaluate
from pipelines.ir import (
    Component,
    Constant,
    Container,
    Dag,
    DagInput,
    Loop,
    Pipeline,
    Task,
    TaskOutput,
)
from pipelines.launch import collect, prepare
from pipelines.process import Runner
from pipelines.values import Artifact, Values, convert
from quantlib.errors import (
    GateFailedError,
    InvalidInputError,
    QuantlibError,
    StepError,
    os_error_line,
)

_FINAL_EXIT_CODES = frozenset({InvalidInputError.exit_code, GateFailedError.exit_code})


class State(StrEnum):
    """What became of a step."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    INTERRUPTED = "interrupted"
    NOT_RUN = "not run"


@dataclass(eq=False)
class StepRun:
    """One step of a run: a task that runs a container, or one iteration of it.

    Attributes:
        step: Name of the task.
        iteration: Its position in the loop that it is in; None outside of one.
        name: Name of the task with the item of its loop: ``quantize[0:8]``.
        folder: Where its log and its outputs are.
        seconds: How long it ran, all attempts and the waits between them together.
        exit_code: Of the last attempt; None where the step was never started.
        error: Why it failed.
    """

    step: str
    iteration: int | None
    name: str
    folder: Path
    state: State = State.WAITING
    started: float | None = None
    seconds: float = 0.0
    attempts: int = 0
    exit_code: int | None = None
    error: str = ""
    outputs: Values = field(default_factory=Values)

    @property
    def outcome(self) -> str:
        """What became of it, in words: a step whose work was in the store is ``reused``."""
        artifacts = [one for found in self.outputs.artifacts.values() for one in found]
        reused = any(one.metadata.get("reused") for one in artifacts)
        return "reused" if reused and self.state is State.SUCCEEDED else self.state.value


@dataclass(frozen=True)
class _Scope:
    """The iteration that a task is in, if any.

    Attributes:
        iteration: Its position in the loop.
        label: Its item, in words.
        width: How many iterations of the loop may run at once.
    """

    iteration: int | None = None
    label: str = ""
    width: int = 1


class Scheduler:
    """Runs one pipeline once.

    Args:
        pipeline: What to run.
        folder: The run's folder; each step gets a folder in it.
        runner: What starts the steps.
        parallel: How many steps may run at once.
        cpus: How many CPUs the steps share.
        changed: Called with a step whenever its state has changed.
        retries: How often a step is started again at most; what the pipeline says where it is less.
            Invalid input and a checkpoint that was refused (exit codes 2 and 3) stay what they are.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        folder: Path,
        runner: Runner,
        parallel: int,
        cpus: int,
        changed: Callable[[StepRun], None] = lambda run: None,
        retries: int = 0,
    ) -> None:
        self.runs: list[StepRun] = []
        self.failure: StepRun | None = None
        self._pipeline = pipeline
        self._folder = folder
        self._runner = runner
        self._parallel = parallel
        self._cpus = cpus
        self._changed = changed
        self._retries = retries
        self._slots = asyncio.Semaphore(parallel)

    async def run(self, parameters: Mapping[str, Any]) -> None:
        """Runs the pipeline to its end; :attr:`runs` and :attr:`failure` say what came of it.

        Cancelling it ends every step.
        """
        await self._run_dag(self._pipeline.root, Values(parameters), _Scope())

    async def _run_dag(
        self, component: Component, inputs: Values, scope: _Scope
    ) -> tuple[State, Values]:
        dag = component.implementation
        assert isinstance(dag, Dag)
        running: dict[str, asyncio.Task[tuple[State, Values]]] = {}
        async with asyncio.TaskGroup() as group:
            for name, task in dag.tasks.items():
                running[name] = group.create_task(self._run_task(task, inputs, running, scope))
        results = {name: task.result() for name, task in running.items()}
        outcome = _outcome(state for state, _ in results.values())
        if outcome is not State.SUCCEEDED:
            return outcome, Values()
        succeeded = {
            name: values for name, (state, values) in results.items() if state is State.SUCCEEDED
        }
        return State.SUCCEEDED, Values(
            _select(dag.parameters, {name: v.parameters for name, v in succeeded.items()}),
            _select(dag.artifacts, {name: v.artifacts for name, v in succeeded.items()}),
        )

    async def _run_task(
        self,
        task: Task,
        dag_inputs: Values,
        running: Mapping[str, asyncio.Task[tuple[State, Values]]],
        scope: _Scope,
    ) -> tuple[State, Values]:
        if task.dependencies:  # asyncio.wait, since a task that awaits another would cancel it too
            await asyncio.wait([running[name] for name in task.dependencies])
        producers = {name: running[name].result() for name in task.dependencies}
        component = self._pipeline.components[task.component]
        states = {state for state, _ in producers.values()}
        if states & {State.FAILED, State.NOT_RUN}:
            return self._leave_out(task.name, component, scope, State.NOT_RUN)
        if State.SKIPPED in states:
            return self._leave_out(task.name, component, scope, State.SKIPPED)
        try:
            outputs = {name: values for name, (_, values) in producers.items()}
            inputs = _resolve(task, component, dag_inputs, outputs)
            if task.condition and evaluate(task.condition, inputs.parameters) is not True:
                return self._leave_out(task.name, component, scope, State.SKIPPED)
            if task.loop:
                return await self._run_loop(task, task.loop, component, inputs)
        except InvalidInputError as error:
            run = self._add_run(task.name, scope)
            return self._fail(run, str(error)), Values()
        return await self._run_component(task, component, inputs, scope)

    async def _run_loop(
        self, task: Task, loop: Loop, component: Component, inputs: Values
    ) -> tuple[State, Values]:
        parameters = dict(inputs.parameters)
        items, item_input = loop.items, loop.item_input
        if isinstance(items, str):
            items = tuple(parameters.pop(items))
        if not items:
            raise InvalidInputError.one(f"loop {task.name}", "has no items to run over")
        spec = component.inputs.parameters[item_input]
        limit = min(loop.parallelism or len(items), len(items))
        slots = asyncio.Semaphore(limit)

        async def iterate(index: int, label: str, item: Any) -> tuple[State, Values]:
            values = Values({**parameters, item_input: item}, inputs.artifacts)
            async with slots:
                return await self._run_component(
                    task, component, values, _Scope(index, label, limit)
                )

        items = tuple(convert(item, spec, f"item of {task.name}") for item in items)
        async with asyncio.TaskGroup() as group:
            iterations = [
                group.create_task(iterate(index, label, item))
                for index, (label, item) in enumerate(zip(_labels(items), items, strict=True))
            ]
        results = [iteration.result() for iteration in iterations]
        outcome = _outcome(state for state, _ in results)
        if outcome is not State.SUCCEEDED:
            return outcome, Values()
        return outcome, _gather([values for _, values in results])

    async def _run_component(
        self, task: Task, component: Component, inputs: Values, scope: _Scope
    ) -> tuple[State, Values]:
        if isinstance(component.implementation, Dag):
            return await self._run_dag(component, inputs, scope)
        run = self._add_run(task.name, scope)
        async with self._slots:
            if self.failure:
                return self._set_state(run, State.NOT_RUN), Values()
            try:
                await self._run_step(run, task, component, inputs, scope)
            except asyncio.CancelledError:
                self._set_state(run, State.INTERRUPTED)
                raise
            except QuantlibError as error:
                self._fail(run, str(error))
            except OSError as error:
                self._fail(run, f"step {run.name}: {os_error_line(error, run.folder)}")
        return run.state, run.outputs

    async def _run_step(
        self, run: StepRun, task: Task, component: Component, inputs: Values, scope: _Scope
    ) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "log.txt").unlink(missing_ok=True)
        threads = max(1, self._cpus // min(self._parallel, scope.width))
        retry = task.retry
        started = run.started = time.monotonic()
        self._set_state(run, State.RUNNING)
        try:
            while True:
                launch = prepare(run.name, component, inputs, run.folder, threads)
                run.attempts += 1
                run.exit_code = await self._runner.run(launch)
                if run.exit_code == 0:
                    run.outputs = collect(run.name, component, run.folder)
                    break
                delay = retry.delay * retry.factor ** (run.attempts - 1)
                elapsed = time.monotonic() - started
                out_of_time = retry.limit and elapsed + delay > retry.limit
                final = run.exit_code in _FINAL_EXIT_CODES
                if final or out_of_time or run.attempts > min(retry.count, self._retries):
                    raise StepError(run.name, _describe(run.exit_code))
                await asyncio.sleep(delay)
        finally:
            run.seconds = time.monotonic() - started
        self._set_state(run, State.SUCCEEDED)

    def _add_run(self, step: str, scope: _Scope) -> StepRun:
        name = f"{step}[{scope.label}]" if scope.label else step
        run = StepRun(step, scope.iteration, name, self._folder / name)
        self.runs.append(run)
        self._changed(run)
        return run

    def _set_state(self, run: StepRun, state: State) -> State:
        run.state = state
        self._changed(run)
        return state

    def _fail(self, run: StepRun, error: str) -> State:
        run.error = error
        self.failure = self.failure or run
        return self._set_state(run, State.FAILED)

    def _leave_out(
        self, name: str, component: Component, scope: _Scope, state: State
    ) -> tuple[State, Values]:
        """Notes that a task, or every step in its DAG, is not run."""
        if isinstance(component.implementation, Container):
            self._set_state(self._add_run(name, scope), state)
        else:
            for inner in component.implementation.tasks.values():
                self._leave_out(
                    inner.name, self._pipeline.components[inner.component], scope, state
                )
        return state, Values()


def _describe(exit_code: int) -> str:
    with contextlib.suppress(ValueError):
        return f"exited with code {exit_code} ({signal.Signals(exit_code - 128).name})"
    return f"exited with code {exit_code}"


def _outcome(states: Iterable[State]) -> State:
    """What became of the whole; skipped parts do not count."""
    found = set(states)
    for state in (State.FAILED, State.NOT_RUN):
        if state in found:
            return state
    return State.SUCCEEDED


def _resolve(
    task: Task, component: Component, dag_inputs: Values, outputs: Mapping[str, Values]
) -> Values:
    """The inputs of a task, from the inputs of its DAG and the outputs of the tasks before it.

    Raises:
        InvalidInputError: A value is missing or of the wrong type.
    """
    parameters: dict[str, Any] = {}
    for name, source in task.parameters.items():
        spec = component.inputs.parameters[name]
        where = f"task {task.name}: input {name}"
        match source:
            case Constant(value):
                pass
            case DagInput(key):
                value = dag_inputs.parameters.get(key)
            case TaskOutput(producer, key):
                value = outputs[producer].parameters.get(key)
        if value is not None:
            parameters[name] = convert(value, spec, where)
        elif not spec.optional:
            raise InvalidInputError.one(where, "has no value")
    if isinstance(component.implementation, Dag):
        for name, spec in component.inputs.parameters.items():
            if spec.default is not None and name not in task.parameters:
                parameters[name] = convert(spec.default, spec, f"task {task.name}: input {name}")
    artifacts: dict[str, tuple[Artifact, ...]] = {}
    for name, reference in task.artifacts.items():
        if isinstance(reference, DagInput):
            found = dag_inputs.artifacts.get(reference.name)
        else:
            found = outputs[reference.task].artifacts.get(reference.name)
        if found is not None:
            artifacts[name] = found
        elif not component.inputs.artifacts[name].optional:
            raise InvalidInputError.one(f"task {task.name}: input {name}", "has no artifact")
    return Values(parameters, artifacts)


def _select(
    selectors: Mapping[str, tuple[TaskOutput, ...]], outputs: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The outputs of a DAG: of each, the first source that has one."""
    selected = {}
    for name, sources in selectors.items():
        for source in sources:
            with contextlib.suppress(KeyError):
                selected[name] = outputs[source.task][source.name]
                break
    return selected


def _gather(iterations: list[Values]) -> Values:
    """The outputs of a loop: lists in the order of its items (``dsl.Collected``)."""
    first = iterations[0]
    return Values(
        {
            name: [values.parameters[name] for values in iterations]
            for name in first.parameters
            if all(name in values.parameters for values in iterations)
        },
        {
            name: tuple(artifact for values in iterations for artifact in values.artifacts[name])
            for name in first.artifacts
            if all(name in values.artifacts for values in iterations)
        },
    )


def _labels(items: tuple[Any, ...]) -> list[str]:
    """The items as parts of a step's name, or their positions where that cannot be."""
    labels = [str(item) for item in items]
    plain = all(re.fullmatch(r"[\w.:-]{1,40}", label) for label in labels)
    return labels if plain and len(set(labels)) == len(labels) else [*map(str, range(len(items)))]
