"""What becomes of single containers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from containers.conftest import containers_of, docker

from components._images import QUANTLIB_IMAGE
from pipelines.interface import Interface
from pipelines.local.calls import Call, Values
from pipelines.local.containers import RUN_LABEL, DockerRunner
from quantlib.errors import InvalidInputError, StepError


@dataclass(frozen=True)
class Program(Call):
    """A call that runs a program in the place of a step."""

    program: tuple[str, ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        """The command."""
        return self.program


def launch(folder: Path, program: str, command: str = "python") -> Program:
    task = folder / "task[0:8]"
    task.mkdir(exist_ok=True)
    inputs, outputs = Values({"store": str(folder / "store")}), Interface({}, (), {}, {})
    argv = (command, "-c", program)
    return Program("task", "task[0:8]", QUANTLIB_IMAGE, {}, 1, task, inputs, outputs, program=argv)


def run(folder: Path, program: str) -> int:
    return asyncio.run(DockerRunner(grace=2).run(launch(folder, program)))


def _cancel_when_started(step: Call, grace: float) -> None:
    async def cancel() -> None:
        task = asyncio.ensure_future(DockerRunner(grace=grace).run(step))
        while "started" not in (step.log.read_text() if step.log.exists() else ""):
            await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(cancel())


def test_a_step_has_the_exit_code_that_it_ends_with(tmp_path: Path) -> None:
    async def run_all() -> list[int]:
        runner = DockerRunner()
        programs = [f"raise SystemExit({code})" for code in [3, 0, 1, 125, 2, 3, 0, 3, 3, 3]]
        return [await runner.run(launch(tmp_path, program)) for program in programs]

    assert asyncio.run(run_all()) == [3, 0, 1, 125, 2, 3, 0, 3, 3, 3]
    assert run(tmp_path, "import os; os.kill(os.getpid(), 6)") == 134
    assert containers_of(tmp_path) == []


def test_what_a_step_reaches(tmp_path: Path) -> None:
    program = f"""
import json, os, pathlib, socket, sys
def attempt(work):
    try:
        work()
    except OSError as error:
        return error.strerror
def write(path):
    return attempt(lambda: pathlib.Path(path, "file").write_text("x"))
print("to the log")
print("errors too", file=sys.stderr)
found = {{path: write(path) for path in ("/", "/opt/venv", "/scratch", "/tmp", "{tmp_path}")}}
found["store"] = write("{tmp_path}/store")
found["network"] = attempt(lambda: socket.create_connection(("1.1.1.1", 443), 2))
found["home"] = os.path.expanduser("~")
pathlib.Path("{tmp_path}/task[0:8]/found.json").write_text(json.dumps(found))
"""
    step = launch(tmp_path, program)
    assert asyncio.run(DockerRunner().run(step)) == 0, step.log.read_text()
    log = step.log.read_text()  # the two come in any order
    assert "errors too" in log
    assert "to the log" in log
    refused = "Read-only file system"
    found = json.loads((step.folder / "found.json").read_text())
    found.pop(str(tmp_path))  # below the container's own /tmp: whatever it wrote is not here
    assert not (tmp_path / "file").exists()
    assert found == {
        "/": refused,
        "/opt/venv": refused,
        "/scratch": None,
        "/tmp": None,
        "store": None,
        "network": "Network is unreachable",
        "home": "/scratch",
    }
    assert (tmp_path / "store" / "file").stat().st_uid == os.getuid()
    assert not (step.folder / "scratch").exists()


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    step = launch(tmp_path, "", command="no-such-program")
    assert asyncio.run(DockerRunner().run(step)) == 127
    assert "no-such-program" in step.log.read_text()
    assert containers_of(tmp_path) == []


def test_a_container_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="cannot be started: network no-such-network not found"):
        runner = DockerRunner(network="no-such-network")
        step = launch(tmp_path, "")
        asyncio.run(runner.run(replace(step, inputs=Values({"store": "s3://bucket/prefix"}))))
    assert containers_of(tmp_path) == []


def test_a_step_that_is_ended_before_it_is_ready(tmp_path: Path) -> None:
    step = launch(tmp_path, "print('started', flush=True); import time; time.sleep(60)")
    started = time.monotonic()
    _cancel_when_started(step, grace=30)
    assert time.monotonic() - started < 15, "SIGTERM did not end it"
    assert containers_of(tmp_path) == []


def test_a_step_that_is_cancelled_may_clean_up(tmp_path: Path) -> None:
    program = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("cleaning up", flush=True)))
print("started", flush=True)
time.sleep(60)
"""
    step = launch(tmp_path, program)

    _cancel_when_started(step, grace=10)
    assert step.log.read_text().splitlines() == ["started", "cleaning up"]
    assert containers_of(tmp_path) == []


def test_a_step_cancelled_at_its_start_leaves_nothing(tmp_path: Path) -> None:
    async def cancel(delay: float) -> None:
        task = asyncio.ensure_future(DockerRunner(grace=1).run(launch(tmp_path, "input()")))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.wait([task])

    for delay in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4):
        asyncio.run(cancel(delay))
        assert containers_of(tmp_path) == []


def test_what_a_killed_runner_left_is_removed(tmp_path: Path) -> None:
    label = f"{RUN_LABEL}={tmp_path}"
    docker("run", "--detach", "--label", label, QUANTLIB_IMAGE, "sleep", "60")
    assert len(containers_of(tmp_path)) == 1
    assert run(tmp_path, "") == 0
    assert containers_of(tmp_path) == []


def test_a_server_on_this_machine_is_reached_by_the_network_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = f"""
import os, socket, sys
try:
    socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), 2)
except OSError as error:
    sys.exit(5)
sys.exit(os.environ["AWS_SECRET_ACCESS_KEY"] != "a secret")
"""
        step = replace(launch(tmp_path, program), inputs=Values({"store": "s3://bucket/prefix"}))
        assert asyncio.run(DockerRunner(network="host").run(step)) == 0
        assert asyncio.run(DockerRunner().run(step)) == 5


def test_images_that_are_not_there() -> None:
    images = [QUANTLIB_IMAGE, "no-such-image:1.2.3"]
    with pytest.raises(InvalidInputError, match=r"image no-such-image:1\.2\.3: is not on this"):
        asyncio.run(DockerRunner().require(images))


RUNNER = """
import asyncio, sys
from pathlib import Path
from containers.test_runner import launch
from pipelines.local.containers import DockerRunner
step = launch(Path(sys.argv[1]), "import time; print('started', flush=True); time.sleep(99)")
asyncio.run(DockerRunner(grace=2).run(step))
"""


def test_a_runner_that_is_killed_takes_its_container(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path)], env=environment)
    log = launch(tmp_path, "").log
    deadline = time.monotonic() + 60
    while not (log.exists() and "started" in log.read_text()):
        assert runner.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert containers_of(tmp_path) != []
    runner.kill()
    while containers_of(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    runner.wait()
