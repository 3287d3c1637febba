"""Toy pipelines, run as processes.

The annotations of components are read by kfp, which does not resolve them from strings: no
``from __future__ import annotations`` here.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from pipelines.local import RunResult
from pipelines.scheduler import State
from quantlib.errors import InvalidInputError

Run = Callable[..., RunResult]
Step = Callable[[str], dsl.ContainerSpec]


def states(result: RunResult) -> dict[str, str]:
    return {run.name: run.state.value for run in result.runs}


def test_parameters_of_every_type_arrive_as_on_the_cluster(run: Run, step: Step) -> None:
    @dsl.container_component
    def make(
        text: str,
        whole: int,
        real: float,
        truth: bool,
        items: list,
        mapping: dict,
        given: dsl.OutputPath(dict),
        number: dsl.OutputPath(int),
        names: dsl.OutputPath(list),
        left_out: str = "the default",
    ) -> dsl.ContainerSpec:
        return step("write('given', inputs); write('number', '7'); write('names', ['a', 'b'])")

    @dsl.container_component
    def read(number: int, names: list, argv: dsl.OutputPath(list)) -> dsl.ContainerSpec:
        source = "import json, pathlib, sys\npathlib.Path(sys.argv[1]).write_text"
        return dsl.ContainerSpec(
            image="toy",
            command=["python", "-S", "-c", source + "(json.dumps(sys.argv[2:]))"],
            args=[argv, f"--number={number}", names],
        )

    @dsl.pipeline(name="toy")
    def toy(whole: int, text: str, real: float = 0.5) -> None:
        made = make(text=text, whole=whole, real=real, truth=True, items=[1, "b"], mapping={"k": 2})
        read(number=made.outputs["number"], names=made.outputs["names"])

    text = 'say "hi" {{$}}\n'
    result = run(toy, whole=3, text=text)
    assert result.exit_code == 0
    assert result.outputs["make"].parameters == {
        "given": {
            "text": text,
            "whole": 3,
            "real": 0.5,
            "truth": True,
            "items": [1, "b"],
            "mapping": {"k": 2},
            "left_out": "the default",
        },
        "number": 7,
        "names": ["a", "b"],
    }
    assert result.outputs["read"].parameters["argv"] == ["--number=7", '["a","b"]']


def test_artifacts_pass_with_their_metadata(run: Run, step: Step) -> None:
    @dsl.container_component
    def make(model: dsl.Output[dsl.Model]) -> dsl.ContainerSpec:
        return step(
            """
            artifact("outputs", "model").write_text("weights")
            entry = call["outputs"]["artifacts"]["model"]["artifacts"][0] | {"metadata": {"n": 3}}
            output = {"artifacts": {"model": {"artifacts": [entry]}}}
            pathlib.Path(call["outputs"]["outputFile"]).write_text(json.dumps(output))
            """
        )

    @dsl.container_component
    def read(model: dsl.Input[dsl.Model], seen: dsl.OutputPath(dict)) -> dsl.ContainerSpec:
        return step(
            """
            (entry,) = call["inputs"]["artifacts"]["model"]["artifacts"]
            write("seen", entry | {"content": artifact("inputs", "model").read_text()})
            """
        )

    @dsl.pipeline(name="toy")
    def toy() -> None:
        read(model=make().outputs["model"])

    result = run(toy)
    path = result.outputs["make"].artifacts["model"][0].path
    assert result.outputs["read"].parameters["seen"] == {
        "name": "model",
        "type": {"schemaTitle": "system.Model", "schemaVersion": "0.0.1"},
        "uri": f"file://{path}",
        "metadata": {"n": 3},
        "content": "weights",
    }
    written = json.loads((path.parents[2] / "run.json").read_text())
    assert written["state"] == "succeeded"
    assert written["tasks"]["make"]["outputs"]["artifacts"]["model"] == [
        {"path": str(path), "type": "system.Model", "metadata": {"n": 3}}
    ]
    assert written["tasks"]["read"]["attempts"] == 1
    assert written["tasks"]["read"]["seconds"] > 0


@pytest.fixture(scope="module")
def fan_out(step: Step) -> Any:
    """Split -> work for each part, which also takes an output of split -> join."""

    @dsl.container_component
    def split(
        count: int, parts: dsl.OutputPath(list[str]), prefix: dsl.OutputPath(str)
    ) -> dsl.ContainerSpec:
        return step(
            "write('parts', [f'{i}:{i + 1}' for i in range(inputs['count'])]); write('prefix', '<')"
        )

    @dsl.container_component
    def work(
        part: str,
        prefix: str,
        piece: dsl.Output[dsl.Artifact],
        size: dsl.OutputPath(int),
        threads: dsl.OutputPath(str),
    ) -> dsl.ContainerSpec:
        return step(
            """
            artifact("outputs", "piece").write_text(inputs["prefix"] + inputs["part"])
            write("size", str(len(inputs["part"])))
            write("threads", os.environ["OMP_NUM_THREADS"])
            """
        )

    @dsl.container_component
    def join(
        pieces: dsl.Input[list[dsl.Artifact]],
        sizes: list[int],
        whole: dsl.OutputPath(list[str]),
        total: dsl.OutputPath(int),
        threads: dsl.OutputPath(str),
    ) -> dsl.ContainerSpec:
        return step(
            """
            count = len(call["inputs"]["artifacts"]["pieces"]["artifacts"])
            pieces = [artifact("inputs", "pieces", i).read_text() for i in range(count)]
            write("whole", pieces)
            write("total", sum(inputs["sizes"]))
            write("threads", os.environ["OMP_NUM_THREADS"])
            """
        )

    @dsl.pipeline(name="toy")
    def toy(count: int) -> None:
        parts = split(count=count)
        with dsl.ParallelFor(parts.outputs["parts"]) as part:
            # kfp.local passes the loop's item in place of the upstream output here
            pieces = work(part=part, prefix=parts.outputs["prefix"])
        join(
            pieces=dsl.Collected(pieces.outputs["piece"]),
            sizes=dsl.Collected(pieces.outputs["size"]),
        )

    return toy


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
    assert "refuse: failed in" in run.output  # type: ignore[attr-defined]


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


def test_a_failure_stops_new_steps_and_lets_running_ones_finish(run: Run, step: Step) -> None:
    @dsl.container_component
    def work(item: str, done: dsl.OutputPath(str)) -> dsl.ContainerSpec:
        return step(
            """
            if inputs["item"] == "b":
                time.sleep(0.1)
                sys.exit(2)
            time.sleep(1)
            write("done", inputs["item"])
            """
        )

    @dsl.container_component
    def join(done: list[str]) -> dsl.ContainerSpec:
        return step("")

    @dsl.pipeline(name="toy")
    def toy() -> None:
        with dsl.ParallelFor(["a", "b", "c", "d"]) as item:
            done = work(item=item).outputs["done"]
        join(done=dsl.Collected(done))

    result = run(toy, parallel=2)
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


@pytest.mark.parametrize(
    ("parallel", "limit", "expected"), [(2, 0, {2}), (4, 1, {1}), (6, 0, {4, 5, 6})]
)
def test_parallelism_is_bounded(
    run: Run, step: Step, tmp_path: Path, parallel: int, limit: int, expected: set[int]
) -> None:
    @dsl.container_component
    def work(item: str, folder: str) -> dsl.ContainerSpec:
        return step(
            """
            start = time.time()
            time.sleep(0.4)
            path = pathlib.Path(inputs["folder"]) / inputs["item"]
            path.write_text(f"{start} {time.time()}")
            """
        )

    @dsl.pipeline(name="toy")
    def toy(folder: str) -> None:
        with dsl.ParallelFor(["a", "b", "c"], parallelism=limit or None) as item:
            work(item=item, folder=folder)
        if not limit:  # steps of another loop share the bound
            with dsl.ParallelFor(["d", "e", "f"]) as item:
                work(item=item, folder=folder)

    times = tmp_path / "times"
    times.mkdir()
    assert run(toy, parallel=parallel, folder=str(times)).exit_code == 0
    assert len(list(times.iterdir())) == (3 if limit else 6)
    assert most_at_once(times) in expected


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


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pass", "did not write its output"),
        ("write('number', 'seven')", "'seven' is no NUMBER_INTEGER"),
        ("write('number', '1.5')", "1.5 is no NUMBER_INTEGER"),
        (
            "pathlib.Path(call['outputs']['outputFile']).write_text('{')",
            "wrote a damaged executor output",
        ),
    ],
)
def test_a_step_without_its_outputs_has_failed(
    run: Run, step: Step, source: str, message: str
) -> None:
    @dsl.container_component
    def work(number: dsl.OutputPath(int)) -> dsl.ContainerSpec:
        return step(source)

    @dsl.pipeline(name="toy")
    def toy() -> None:
        work()

    result = run(toy)
    assert result.exit_code == 1
    assert result.failure is not None
    assert message in result.failure.error


def test_a_step_that_is_killed(run: Run, step: Step) -> None:
    @dsl.container_component
    def work() -> dsl.ContainerSpec:
        return step("os.kill(os.getpid(), 9)")

    @dsl.pipeline(name="toy")
    def toy() -> None:
        work()

    result = run(toy)
    assert result.exit_code == 137
    assert result.failure is not None
    assert result.failure.error == "step work: exited with code 137 (SIGKILL)"


def test_a_command_that_is_not_there(run: Run) -> None:
    @dsl.container_component
    def work() -> dsl.ContainerSpec:
        return dsl.ContainerSpec(image="toy", command=["no-such-program"])

    @dsl.pipeline(name="toy")
    def toy() -> None:
        work()

    result = run(toy)
    assert result.exit_code == 1
    assert result.failure is not None
    assert "no-such-program cannot be started" in result.failure.error


def test_an_argument_that_the_system_would_refuse(run: Run, step: Step) -> None:
    @dsl.container_component
    def work(text: str) -> dsl.ContainerSpec:
        return step("")

    @dsl.pipeline(name="toy")
    def toy(text: str) -> None:
        work(text=text)

    assert run(toy, text="x" * 130_000).exit_code == 0
    result = run(toy, text="x" * 131_072)
    assert result.failure is not None
    assert "longer than the system's 131072" in result.failure.error


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "parameter count: is missing"),
        ({"count": 2, "other": 1}, "parameter other: the pipeline has none of this name"),
        ({"count": "two"}, "'two' is no NUMBER_INTEGER"),
    ],
)
def test_wrong_parameters_run_nothing(
    run: Run, fan_out: Any, tmp_path: Path, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        run(fan_out, **parameters)
    assert not (tmp_path / "run").exists()


def test_what_a_step_leaves_behind_is_killed(run: Run, step: Step) -> None:
    @dsl.container_component
    def work(child: dsl.OutputPath(int)) -> dsl.ContainerSpec:
        return step(
            """
            import subprocess
            write("child", str(subprocess.Popen(["sleep", "60"]).pid))
            """
        )

    @dsl.pipeline(name="toy")
    def toy() -> None:
        work()

    result = run(toy)
    assert result.exit_code == 0
    assert is_gone(result.outputs["work"].parameters["child"])


def is_gone(pid: int) -> bool:
    """Whether a process has ended, or will not run again (a zombie that nobody waits for)."""
    for _ in range(40):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


RUNNER = """
import sys
from pathlib import Path
from rich.console import Console
from pipelines.local import run_pipeline
from pipelines.process import ProcessRunner
result = run_pipeline(
    Path(sys.argv[1]), {"folder": sys.argv[2]}, Path(sys.argv[2]) / "run",
    ProcessRunner(grace=float(sys.argv[3])), 2, Console(),
)
sys.exit(result.exit_code)
"""


@pytest.mark.parametrize(
    ("numbers", "grace", "exit_code"),
    [
        ([signal.SIGTERM], 0.5, 143),
        ([signal.SIGINT], 0.5, 130),
        ([signal.SIGINT, signal.SIGINT], 60.0, 130),
    ],
)
def test_a_signal_ends_every_process(
    compiled: Callable[[Any], Path],
    step: Step,
    tmp_path: Path,
    numbers: list[signal.Signals],
    grace: float,
    exit_code: int,
) -> None:
    @dsl.container_component
    def work(item: str, folder: str) -> dsl.ContainerSpec:
        # a grandchild that does not mind SIGTERM, and a child that takes its time over it
        return step(
            """
            import signal, subprocess
            child = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 60 & wait; sleep 60"])
            folder = pathlib.Path(inputs["folder"])
            def unwind(*_):
                (folder / f"unwound-{inputs['item']}").touch()
            signal.signal(signal.SIGTERM, unwind)
            partial = folder / f"partial-{inputs['item']}"
            partial.write_text(f"{os.getpid()} {child.pid}")
            partial.rename(folder / f"pids-{inputs['item']}")
            while True:
                time.sleep(0.05)
            """
        )

    @dsl.container_component
    def join() -> dsl.ContainerSpec:
        return step("")

    @dsl.pipeline(name="toy")
    def toy(folder: str) -> None:
        with dsl.ParallelFor(["a", "b", "c"]) as item:
            worked = work(item=item, folder=folder)
        join().after(worked)

    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(compiled(toy)), str(tmp_path), str(grace)],
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 20
    while len(list(tmp_path.glob("pids-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.3)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == exit_code
    pids = [int(p) for path in tmp_path.glob("pids-*") for p in path.read_text().split()]
    assert len(pids) == 4
    assert all(is_gone(pid) for pid in pids)
    assert len(list(tmp_path.glob("unwound-*"))) == 2
    assert output.count("interrupted in") == 2
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (written["state"], written["exit_code"]) == (State.INTERRUPTED.value, exit_code)
    found = {name: task["state"] for name, task in written["tasks"].items()}
    assert found == {
        "work[a]": "interrupted",
        "work[b]": "interrupted",
        "work[c]": "not run",
        "join": "not run",
    }
