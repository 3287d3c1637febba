"""Whole runs of toy pipelines.

The annotations of components are read by kfp, which does not resolve them from strings: no
``from __future__ import annotations`` here.
"""

import fcntl
import json
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
Alone = Callable[[Any], Any]


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


def test_two_runs_do_not_share_a_folder(run: Run, alone: Alone, step: Step, tmp_path: Path) -> None:
    @dsl.container_component
    def work() -> dsl.ContainerSpec:
        return step("")

    assert run(alone(work)).exit_code == 0
    with (tmp_path / "run" / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InvalidInputError, match="another run is using it"):
            run(alone(work))
    assert run(alone(work)).exit_code == 0


def test_what_a_step_leaves_behind_is_killed(run: Run, alone: Alone, step: Step) -> None:
    @dsl.container_component
    def work(child: dsl.OutputPath(int)) -> dsl.ContainerSpec:
        return step(
            """
            import subprocess
            write("child", str(subprocess.Popen(["sleep", "60"]).pid))
            """
        )

    result = run(alone(work))
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
        ([signal.SIGTERM], 1.0, 143),
        ([signal.SIGINT], 1.0, 130),
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
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("pids-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for number in numbers:
        process.send_signal(number)
        while len(list(tmp_path.glob("unwound-*"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    output, _ = process.communicate(timeout=60)
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
