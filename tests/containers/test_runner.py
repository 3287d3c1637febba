"""What becomes of single containers."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from containers.conftest import containers_of, docker

from components._images import QUANTLIB_IMAGE
from pipelines.docker import RUN_LABEL, DockerRunner
from pipelines.launch import Launch
from quantlib.errors import InvalidInputError, StepError


def launch(folder: Path, program: str, command: str = "python") -> Launch:
    task = folder / "task[0:8]"
    task.mkdir(exist_ok=True)
    argv = (command, "-c", program)
    store = {"store": str(folder / "store")}
    return Launch("task[0:8]", QUANTLIB_IMAGE, argv, {}, 1, task, store, ())


def run(folder: Path, program: str) -> int:
    return asyncio.run(DockerRunner(grace=2).run(launch(folder, program)))


def test_a_step_has_the_exit_code_that_it_ends_with(tmp_path: Path) -> None:
    async def run_all() -> list[int]:
        runner = DockerRunner()
        found = []
        for code in [3, 0, 1, 125, 2, 3, 0, 3, 3, 3]:
            found.append(await runner.run(launch(tmp_path, f"raise SystemExit({code})")))
        return found

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
    assert step.log.read_text().splitlines() == ["to the log", "errors too"]
    refused = "Read-only file system"
    assert json.loads((step.folder / "found.json").read_text()) == {
        "/": refused,
        "/opt/venv": refused,
        "/scratch": None,
        "/tmp": None,
        str(tmp_path): refused,
        "store": None,
        "network": "Network is unreachable",
        "home": "/scratch",
    }
    assert (tmp_path / "store" / "file").stat().st_uid == (os.getuid() or 10001)
    assert not (step.folder / "scratch").exists()


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="no-such-program cannot be started"):
        asyncio.run(DockerRunner().run(launch(tmp_path, "", command="no-such-program")))
    assert containers_of(tmp_path) == []


def test_a_step_that_is_cancelled_may_clean_up(tmp_path: Path) -> None:
    program = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("cleaning up", flush=True)))
print("started", flush=True)
time.sleep(60)
"""
    step = launch(tmp_path, program)

    async def cancel() -> None:
        task = asyncio.ensure_future(DockerRunner().run(step))
        while "started" not in (step.log.read_text() if step.log.exists() else ""):
            await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(cancel())
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


def test_images_that_are_not_there() -> None:
    images = [QUANTLIB_IMAGE, "no-such-image:1.2.3"]
    with pytest.raises(InvalidInputError, match="image no-such-image:1.2.3: is not on this"):
        asyncio.run(DockerRunner().require(images))
