"""Whole runs of toy pipelines.

The annotations of components are read by kfp, which does not resolve them from strings: no
``from __future__ import annotations`` here.
"""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl
from processes import are_gone, descendants

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


def test_a_runner_that_is_killed_takes_its_steps_with_it(
    compiled: Callable[[Any], Path], step: Step, tmp_path: Path
) -> None:
    @dsl.container_component
    def work(folder: str) -> dsl.ContainerSpec:
        # an engine in a session of its own, which minds no SIGTERM
        return step(
            """
            import subprocess
            engine = subprocess.Popen(
                ["sh", "-c", "trap '' TERM; sleep 60 & wait; sleep 60"], start_new_session=True
            )
            folder = pathlib.Path(inputs["folder"])
            (folder / "partial").write_text(f"{os.getpid()} {engine.pid}")
            (folder / "partial").rename(folder / "pids")
            time.sleep(60)
            """
        )

    @dsl.pipeline(name="toy")
    def toy(folder: str) -> None:
        work(folder=folder)

    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(compiled(toy)), str(tmp_path), "60"],
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "pids").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    all_of_them = descendants(process.pid)
    assert {int(pid) for pid in (tmp_path / "pids").read_text().split()} < set(all_of_them)
    with (tmp_path / "run" / ".lock").open() as lock:
        process.kill()
        process.wait(10)
        # The steps hold the folder's lock for as long as they live.
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert are_gone(all_of_them, seconds=1)


def test_a_full_disk_is_one_line_and_leaves_a_result(
    run: Run, alone: Alone, step: Step, tmp_path: Path, mount: Callable[..., Path]
) -> None:
    @dsl.container_component
    def work() -> dsl.ContainerSpec:
        return step("")

    volume = mount(tmp_path / "run", "-t", "tmpfs", "-o", "size=256k", "tmpfs")
    with suppress(OSError), (volume / "filler").open("wb", buffering=0) as filler:
        for _ in range(64 - 17):  # all pages but those of the result and the lock
            filler.write(bytes(4096))
    (volume / ".lock").touch()
    (volume / "log").mkdir()
    real = Path.mkdir

    def full(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name == "artifacts":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "mkdir", full)
        result = run(alone(work))
    assert result.exit_code == 1
    assert result.failure is not None
    assert result.failure.error.endswith("work/artifacts: No space left on device")
    written = json.loads((volume / "run.json").read_text())
    assert (written["state"], written["exit_code"]) == ("failed", 1)


def test_a_slow_engine_ends_with_its_step(
    compiled: Callable[[Any], Path], step: Step, tmp_path: Path
) -> None:
    @dsl.container_component
    def work(folder: str) -> dsl.ContainerSpec:
        # as Workers does: its own engine gets all of its time, and then is killed by its keeper
        return step(
            """
            import signal, subprocess
            sys.path[:0] = os.environ["PATHS"].split(os.pathsep)
            from quantlib.runtime.keeper import kept
            from quantlib.runtime.process_group import end_kept
            engine = subprocess.Popen(kept(["sh", "-c", "trap '' TERM; sleep 60; sleep 60"], 2.0))
            folder = pathlib.Path(inputs["folder"])
            def end(*_):
                end_kept(engine, 2.0)
                (folder / "unwound").touch()
                sys.exit(143)
            signal.signal(signal.SIGTERM, end)
            (folder / "pids").touch()
            time.sleep(60)
            """
        )

    @dsl.pipeline(name="toy")
    def toy(folder: str) -> None:
        work(folder=folder)

    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(compiled(toy)), str(tmp_path), "7"],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PATHS": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "pids").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    all_of_them = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert (tmp_path / "unwound").exists()
    assert are_gone(all_of_them)
