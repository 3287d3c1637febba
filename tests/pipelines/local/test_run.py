"""Whole runs: their folder, signals, and what they leave."""

from __future__ import annotations

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
from processes import are_gone, descendants
from toys import Toy

from pipelines.graph import Asked, Graph, Item, Output, Step
from pipelines.local.run import RunResult
from pipelines.local.state import State
from quantlib.errors import InvalidInputError

Run = Callable[..., RunResult]
NOTHING = Toy(Graph("toy", "", (), (Step("work", {}),)), {"work": ""})


def test_two_runs_do_not_share_a_folder(run: Run, tmp_path: Path) -> None:
    assert run(NOTHING).exit_code == 0
    with (tmp_path / "run" / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InvalidInputError, match="another run is using it"):
            run(NOTHING)
    assert run(NOTHING).exit_code == 0


def test_what_a_step_leaves_behind_is_killed(run: Run) -> None:
    toy = Toy(
        NOTHING.graph,
        {"work": "import subprocess; write('child', subprocess.Popen(['sleep', '60']).pid)"},
        {"work": {"child": int}},
    )
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


PROGRAM = """
import sys
from pathlib import Path
from rich.console import Console
from test_run import TOYS
from toys import run_toy
name, folder, grace = sys.argv[1:]
result = run_toy(
    TOYS[name], Path(folder) / "run", Console(), parallel=2, grace=float(grace), where=folder
)
sys.exit(result.exit_code)
"""

TOYS = {
    # a grandchild that does not mind SIGTERM, and a child that takes its time over it
    "stubborn": Toy(
        Graph(
            "toy",
            "",
            (),
            (
                Step("split", {}),
                Step(
                    "work",
                    {"item": Item(), "folder": Asked("where")},
                    each=Output("split", "items"),
                ),
                Step("join", {}, after=("work",)),
            ),
        ),
        {
            "split": "write('items', list('abc'))",
            "work": """
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
            """,
            "join": "",
        },
        {"split": {"items": list}},
    ),
    # an engine in a session of its own, which minds no SIGTERM
    "engine": Toy(
        Graph("toy", "", (), (Step("work", {"folder": Asked("where")}),)),
        {
            "work": """
                import subprocess
                engine = subprocess.Popen(
                    ["sh", "-c", "trap '' TERM; sleep 60 & wait; sleep 60"], start_new_session=True
                )
                folder = pathlib.Path(inputs["folder"])
                (folder / "partial").write_text(f"{os.getpid()} {engine.pid}")
                (folder / "partial").rename(folder / "pids")
                time.sleep(60)
            """
        },
    ),
    # as Workers does: its own engine gets all of its time, and then is killed by its keeper
    "slow": Toy(
        Graph("toy", "", (), (Step("work", {"folder": Asked("where")}),)),
        {
            "work": """
                import signal, subprocess
                sys.path[:0] = os.environ["PATHS"].split(os.pathsep)
                from quantlib.runtime.keeper import kept
                from quantlib.runtime.process_group import end_kept
                engine = subprocess.Popen(
                    kept(["sh", "-c", "trap '' TERM; sleep 60; sleep 60"], 2.0)
                )
                folder = pathlib.Path(inputs["folder"])
                def end(*_):
                    end_kept(engine, 2.0)
                    (folder / "unwound").touch()
                    sys.exit(143)
                signal.signal(signal.SIGTERM, end)
                (folder / "pids").touch()
                time.sleep(60)
            """
        },
    ),
}


def start(name: str, folder: Path, grace: float) -> subprocess.Popen[str]:
    """A process that runs one of ``TOYS``."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, name, str(folder), str(grace)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PATHS, "PATHS": PATHS},
    )


PATHS = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])


def wait_for(folder: Path, pattern: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("numbers", "grace", "exit_code"),
    [
        ([signal.SIGTERM], 1.0, 143),
        ([signal.SIGINT], 1.0, 130),
        ([signal.SIGINT, signal.SIGINT], 60.0, 130),
    ],
)
def test_a_signal_ends_every_process(
    tmp_path: Path, numbers: list[signal.Signals], grace: float, exit_code: int
) -> None:
    process = start("stubborn", tmp_path, grace)
    wait_for(tmp_path, "pids-*", 2)
    for number in numbers:
        process.send_signal(number)
        wait_for(tmp_path, "unwound-*", 2)
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
        "split": "succeeded",
        "work[a]": "interrupted",
        "work[b]": "interrupted",
        "work[c]": "not run",
        "join": "not run",
    }


def test_a_runner_that_is_killed_takes_its_steps_with_it(tmp_path: Path) -> None:
    process = start("engine", tmp_path, 60)
    wait_for(tmp_path, "pids", 1)
    all_of_them = descendants(process.pid)
    assert {int(pid) for pid in (tmp_path / "pids").read_text().split()} < set(all_of_them)
    with (tmp_path / "run" / ".lock").open() as lock:
        process.kill()
        process.wait(10)
        # The steps hold the folder's lock for as long as they live.
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert are_gone(all_of_them, seconds=1)


def test_a_full_disk_is_one_line_and_leaves_a_result(
    run: Run, tmp_path: Path, mount: Callable[..., Path]
) -> None:
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
        result = run(NOTHING)
    assert result.exit_code == 1
    assert result.failure is not None
    assert result.failure.error.endswith("work/artifacts: No space left on device")
    written = json.loads((volume / "run.json").read_text())
    assert (written["state"], written["exit_code"]) == ("failed", 1)


def test_a_slow_engine_ends_with_its_step(tmp_path: Path) -> None:
    process = start("slow", tmp_path, 7)
    wait_for(tmp_path, "pids", 1)
    all_of_them = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert (tmp_path / "unwound").exists()
    assert are_gone(all_of_them)
