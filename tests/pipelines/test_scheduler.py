"""Order, loops, conditions, bounds and retries, in toy pipelines run as processes.

The annotations of components are read by kfp, which does not resolve them from strings: no
``from __future__ import annotations`` here.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl
from rich.console import Console

from pipelines.local import RunResult, run_pipeline
from pipelines.process import ProcessRunner

Run = Callable[..., RunResult]
Step = Callable[[str], dsl.ContainerSpec]


def states(result: RunResult) -> dict[str, str]:
    return {run.name: run.state.value for run in result.runs}


def test_loop_over_an_upstream_list_is_collected_in_order(
    run: Run, fan_out: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    result = run(fan_out, parallel=3, count=4)
    assert [run.name for run in result.runs] == [
        "split",
        *(f"work[{i}:{i + 1}]" for i in range(4)),
        "join",
    ]
    joined = result.outputs["join"].parameters
    assert joined["whole"] == ["<0:1", "<1:2", "<2:3", "<3:4"]
    assert joined["total"] == 12
    cpus = len(os.sched_getaffinity(0))
    assert joined["threads"] == str(cpus)
    assert result.outputs["work[0:1]"].parameters["threads"] == str(max(1, cpus // 3))


def test_threads_are_divided_by_what_can_run_at_once(
    run: Run, fan_out: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run(fan_out, parallel=8, count=3).outputs["work[0:1]"].parameters["threads"] == "4"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert run(fan_out, parallel=8, count=3).outputs["work[0:1]"].parameters["threads"] == "5"


def test_a_loop_without_items_fails(run: Run, fan_out: Any) -> None:
    result = run(fan_out, count=0)
    assert result.exit_code == 1
    assert result.failure is not None
    assert "has no items" in result.failure.error
    assert states(result)["join"] == "not run"


@pytest.fixture(scope="module")
def gated(step: Step) -> Any:
    """Judge -> publish, or refuse, which fails with exit code 3; then announce behind publish."""

    @dsl.container_component
    def judge(wanted: str, verdict: dsl.OutputPath(str)) -> dsl.ContainerSpec:
        return step("write('verdict', inputs['wanted'])")

    @dsl.container_component
    def publish(address: dsl.OutputPath(str)) -> dsl.ContainerSpec:
        return step("write('address', 'here')")

    @dsl.container_component
    def announce(address: str) -> dsl.ContainerSpec:
        return step("print('announced', inputs['address'])")

    @dsl.container_component
    def refuse(verdict: str) -> dsl.ContainerSpec:
        return step("print('first line'); sys.exit('the verdict is ' + inputs['verdict'])")

    @dsl.pipeline(name="toy")
    def toy(wanted: str) -> None:
        verdict = judge(wanted=wanted).outputs["verdict"]
        with dsl.If(verdict == "passed"):
            announce(address=publish().outputs["address"])
        with dsl.Else():
            refuse(verdict=verdict)

    return toy


def test_condition_takes_one_branch(run: Run, gated: Any) -> None:
    result = run(gated, wanted="passed")
    assert result.exit_code == 0
    assert states(result) == {
        "judge": "succeeded",
        "publish": "succeeded",
        "announce": "succeeded",
        "refuse": "skipped",
    }


def test_condition_takes_the_other_branch(run: Run, gated: Any) -> None:
    result = run(gated, wanted="failed")
    assert states(result) == {
        "judge": "succeeded",
        "publish": "skipped",
        "announce": "skipped",
        "refuse": "failed",
    }
    assert result.exit_code == 1
    assert result.failure is not None
    assert result.failure.error == "step refuse: exited with code 1"
    log = (result.failure.folder / "log.txt").read_text()
    assert log == "first line\nthe verdict is failed\n"
    assert "refuse: failed in" in run.output  # type: ignore[attr-defined]  # set by the fixture


@pytest.mark.parametrize("wanted", ["left", "right"])
def test_one_of_takes_the_branch_that_ran(run: Run, step: Step, wanted: str) -> None:
    @dsl.container_component
    def left(value: dsl.OutputPath(str), file: dsl.Output[dsl.Artifact]) -> dsl.ContainerSpec:
        return step("write('value', 'left'); artifact('outputs', 'file').write_text('left')")

    @dsl.container_component
    def right(value: dsl.OutputPath(str), file: dsl.Output[dsl.Artifact]) -> dsl.ContainerSpec:
        return step("write('value', 'right'); artifact('outputs', 'file').write_text('right')")

    @dsl.container_component
    def read(
        value: str, file: dsl.Input[dsl.Artifact], both: dsl.OutputPath(list)
    ) -> dsl.ContainerSpec:
        return step("write('both', [inputs['value'], artifact('inputs', 'file').read_text()])")

    @dsl.pipeline(name="toy")
    def toy(wanted: str) -> None:
        with dsl.If(wanted == "left"):
            first = left()
        with dsl.Else():
            second = right()
        read(
            value=dsl.OneOf(first.outputs["value"], second.outputs["value"]),
            file=dsl.OneOf(first.outputs["file"], second.outputs["file"]),
        )

    result = run(toy, wanted=wanted)
    assert result.exit_code == 0
    assert result.outputs["read"].parameters["both"] == [wanted, wanted]


def test_a_failure_stops_new_steps_and_lets_running_ones_finish(
    run: Run, step: Step, tmp_path: Path
) -> None:
    @dsl.container_component
    def work(item: str, folder: str, done: dsl.OutputPath(str)) -> dsl.ContainerSpec:
        return step(
            """
            leaving = pathlib.Path(inputs["folder"]) / "leaving"
            if inputs["item"] == "b":
                leaving.touch()
                sys.exit(2)
            while not leaving.exists():
                time.sleep(0.02)
            time.sleep(1)
            write("done", inputs["item"])
            """
        )

    @dsl.container_component
    def join(done: list[str]) -> dsl.ContainerSpec:
        return step("")

    @dsl.pipeline(name="toy")
    def toy(folder: str) -> None:
        with dsl.ParallelFor(["a", "b", "c", "d"]) as item:
            done = work(item=item, folder=folder).outputs["done"]
        join(done=dsl.Collected(done))

    result = run(toy, parallel=2, folder=str(tmp_path))
    assert states(result) == {
        "work[a]": "succeeded",
        "work[b]": "failed",
        "work[c]": "not run",
        "work[d]": "not run",
        "join": "not run",
    }
    assert result.exit_code == 2
    assert result.failure is not None
    assert result.failure.name == "work[b]"


def most_at_once(folder: Path) -> int:
    """How many steps ran at the same time, from the times that they left in files."""
    events = []
    for path in folder.iterdir():
        start, end = map(float, path.read_text().split())
        events += [(start, 1), (end, -1)]
    running = most = 0
    for _, change in sorted(events):
        running += change
        most = max(most, running)
    return most


@pytest.mark.parametrize(("parallel", "limit", "expected"), [(2, 0, 2), (4, 1, 1), (6, 0, 6)])
def test_parallelism_is_bounded(
    run: Run, step: Step, tmp_path: Path, parallel: int, limit: int, expected: int
) -> None:
    @dsl.container_component
    def work(item: str, folder: str, expected: int) -> dsl.ContainerSpec:
        return step(
            """
            start = time.time()
            path = pathlib.Path(inputs["folder"]) / inputs["item"]
            path.touch()
            while len(list(path.parent.iterdir())) < inputs["expected"]:
                assert time.time() < start + 20
                time.sleep(0.02)
            time.sleep(0.2)
            path.write_text(f"{start} {time.time()}")
            """
        )

    @dsl.pipeline(name="toy")
    def toy(folder: str, expected: int) -> None:
        with dsl.ParallelFor(["a", "b", "c"], parallelism=limit or None) as item:
            work(item=item, folder=folder, expected=expected)
        if not limit:  # steps of another loop share the bound
            with dsl.ParallelFor(["d", "e", "f"]) as item:
                work(item=item, folder=folder, expected=expected)

    times = tmp_path / "times"
    times.mkdir()
    assert run(toy, parallel=parallel, folder=str(times), expected=expected).exit_code == 0
    assert len(list(times.iterdir())) == (3 if limit else 6)
    assert most_at_once(times) == expected


@pytest.fixture(scope="module")
def flaky(step: Step) -> Any:
    """A step that fails until its third attempt."""

    @dsl.container_component
    def work(
        counter: str, left: dsl.Output[dsl.Artifact], done: dsl.OutputPath(str)
    ) -> dsl.ContainerSpec:
        return step(
            """
            assert not artifact("outputs", "left").exists()
            artifact("outputs", "left").write_text("by an attempt")
            path = pathlib.Path(inputs["counter"])
            attempt = len(path.read_text()) + 1 if path.exists() else 1
            path.write_text("x" * attempt)
            print("attempt", attempt)
            if attempt < 3:
                sys.exit(7)
            write("done", str(attempt))
            """
        )

    @dsl.pipeline(name="toy")
    def toy(counter: str) -> None:
        work(counter=counter).set_retry(
            2, backoff_duration="0s", backoff_factor=1.0, backoff_max_duration="60s"
        )

    return toy


def test_retries_until_it_succeeds(run: Run, flaky: Any, tmp_path: Path) -> None:
    result = run(flaky, counter=str(tmp_path / "counter"))
    assert result.exit_code == 0
    (work,) = result.runs
    assert work.attempts == 3
    assert work.outputs.parameters == {"done": "3"}
    assert (work.folder / "log.txt").read_text() == "attempt 1\nattempt 2\nattempt 3\n"


def test_gives_up_after_the_retries(run: Run, step: Step) -> None:
    @dsl.container_component
    def work() -> dsl.ContainerSpec:
        return step("sys.exit(7)")

    @dsl.pipeline(name="toy")
    def toy() -> None:
        work().set_retry(1, backoff_duration="0s", backoff_max_duration="60s")

    result = run(toy)
    assert (result.exit_code, result.runs[0].attempts) == (7, 2)


@pytest.mark.parametrize("code", [2, 3])
def test_what_would_fail_again_is_not_retried(run: Run, step: Step, code: int) -> None:
    @dsl.container_component
    def work() -> dsl.ContainerSpec:
        return step(f"sys.exit({code})")

    @dsl.pipeline(name="toy")
    def toy() -> None:
        work().set_retry(3, backoff_duration="0s", backoff_max_duration="60s")

    result = run(toy)
    assert (result.exit_code, result.runs[0].attempts) == (code, 1)


def test_a_run_here_retries_only_when_it_is_asked_to(
    flaky: Any, compiled: Any, tmp_path: Path
) -> None:
    parameters = {"counter": str(tmp_path / "counter")}
    console = Console(file=io.StringIO())
    result = run_pipeline(
        compiled(flaky), parameters, tmp_path / "run", ProcessRunner(), 1, console
    )
    assert (result.exit_code, result.runs[0].attempts) == (7, 1)
