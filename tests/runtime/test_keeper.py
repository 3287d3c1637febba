"""Commands that end with all that they have started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import are_gone, marked

from quantlib.runtime.keeper import kept
from quantlib.runtime.process_group import end_kept

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python source under a keeper and waits for its first line."""
    started: list[subprocess.Popen[bytes]] = []

    def start_it(source: str, *arguments: str | Path, grace: float = 10) -> subprocess.Popen[bytes]:
        command = kept([sys.executable, "-c", source, *map(str, arguments)], grace)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        return process

    yield start_it
    for process in started:
        assert process.stdout is not None
        end_kept(process, 0)
        process.stdout.close()


# A tree of four with a word in their command lines: a child that minds no SIGTERM, one in a session
# of its own, and one whose parent is gone.
TREE = """
import os, signal, subprocess, sys, time
stubborn = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print(); time.sleep(99)"
orphan = "import os, sys, time\\nif os.fork(): os._exit(0)\\nos.setsid(); print(); time.sleep(99)"
for code, own in ((stubborn, False), (stubborn, True), (orphan, True)):
    process = subprocess.Popen([sys.executable, "-c", code, sys.argv[1]], stdout=-1,
                               start_new_session=own)
    process.stdout.readline()
print("up", flush=True)
"""


def test_what_a_command_leaves_is_killed_in_every_session(start: Start) -> None:
    mark = uuid.uuid4().hex
    process = start(TREE + "sys.exit(7)", mark)
    assert process.wait(10) == 7
    assert are_gone(marked(mark))


@pytest.mark.parametrize("grace", [0.2, 60])
def test_a_command_that_ignores_sigterm_is_killed(start: Start, grace: float) -> None:
    mark = uuid.uuid4().hex
    ignoring = TREE.replace('print("up"', 'signal.signal(15, signal.SIG_IGN)\nprint("up"')
    process = start(ignoring + "time.sleep(99)", mark, grace=grace)
    before = marked(mark)
    assert len(before) == 5  # the keeper is one of them
    started = time.monotonic()
    end_kept(process, 0.5)
    assert time.monotonic() - started < 40
    assert process.returncode == -signal.SIGKILL
    assert are_gone(before)


CAREFUL = """
import os, signal, sys, time
def end(*_):
    time.sleep(0.3)
    open(sys.argv[1], "w").close()
    os._exit(4)
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
while True:
    time.sleep(0.05)
"""


def test_a_command_may_end_by_itself(start: Start, tmp_path: Path) -> None:
    process = start(CAREFUL, tmp_path / "ended")
    end_kept(process)
    assert process.returncode == 4
    assert (tmp_path / "ended").exists()


def test_the_keeper_ends_as_its_command(start: Start) -> None:
    up = "print('up', flush=True); import os, signal, sys; "
    assert start(up + "sys.exit(3)").wait(10) == 3
    assert start(up + "os.kill(os.getpid(), 9)").wait(10) == -signal.SIGKILL
    assert start(up + "os.kill(os.getpid(), 15)").wait(10) == -signal.SIGTERM
    command = kept(["no-such-program"], 1)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert done.stderr == "no-such-program cannot be started: No such file or directory\n"


PARENT = """
import subprocess, sys, time
from quantlib.runtime.keeper import kept
process = subprocess.Popen(kept([sys.executable, "-c", *sys.argv[1:]], 60), stdout=-1)
process.stdout.readline()
print("up", flush=True)
time.sleep(99)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_parent_that_is_killed_takes_all_with_it(start: Start, number: signal.Signals) -> None:
    mark = uuid.uuid4().hex
    inner = TREE + "time.sleep(99)"
    # Three keepers deep, as an engine is below a step below the runner.
    process = start(PARENT, PARENT, PARENT, inner, mark)
    before = marked(mark)
    assert len(before) >= 8
    os.kill(process.pid, number)
    assert are_gone(before)
    process.wait(5)


STUCK = """
import signal, time
from multiprocessing.shared_memory import SharedMemory
signal.signal(signal.SIGTERM, lambda *_: None)
memory = SharedMemory(create=True, size=8)
print("up", flush=True)
print(memory.name, flush=True)
time.sleep(60)
"""


def test_shared_memory_of_a_killed_process_is_freed(start: Start) -> None:
    process = start(STUCK, grace=0.2)
    assert process.stdout is not None
    memory = Path("/dev/shm") / process.stdout.readline().decode().strip()
    assert memory.exists()
    end_kept(process)
    assert not memory.exists()


AFTER = """
import subprocess, sys, time
from quantlib.runtime.keeper import kept
after = [sys.executable, "-c", "open({path!r}, 'w').close()".format(path=sys.argv[1])]
process = subprocess.Popen(kept([sys.executable, "-c", sys.argv[2]], 60, after), stdout=-1)
process.stdout.readline()
print("up", flush=True)
time.sleep(float(sys.argv[3]))
process.terminate()
process.wait()
"""


@pytest.mark.parametrize("seconds", [99, 0])
def test_what_a_command_began_elsewhere_is_ended_with_a_killed_parent(
    start: Start, tmp_path: Path, seconds: int
) -> None:
    process = start(
        AFTER,
        tmp_path / "after",
        "import time; print('up', flush=True); time.sleep(99)",
        str(seconds),
    )
    if seconds:
        os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    deadline = time.monotonic() + 20
    while seconds and not (tmp_path / "after").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (tmp_path / "after").exists() == bool(seconds), "it ended by itself, or not"
