"""Workers as processes: what they leave, what they say, how they end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quantlib.errors import QuantlibError
from quantlib.evaluation.job import OUTCOME_NAME, REFERENCE_NAME, Job
from quantlib.evaluation.process import last_lines, run_worker

MakeJob = Callable[..., Job]


@pytest.mark.slow
def test_a_worker_writes_its_files_and_reports_each_window(
    tiny_llama: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(tiny_llama)
    done: list[int] = []
    run_worker(job, "original", tmp_path / "log", "the log", lambda: done.append(1))
    assert len(done) == 4
    written = {path.name for path in Path(job.output).iterdir()}
    assert written == {"job.json", REFERENCE_NAME, OUTCOME_NAME}


@pytest.mark.slow
def test_a_failed_worker_is_quoted(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(QuantlibError) as error:
        run_worker(make_job(tmp_path / "empty"), "original", tmp_path / "log", "X/log", print)
    message = str(error.value)
    assert message.startswith("original: the engine failed (exit code 1); its log is X/log")
    assert "Error: " in message
    assert len(message.splitlines()) <= 9
    assert "Traceback" in (tmp_path / "log").read_text()


def group_of(folder: str) -> list[int]:
    """Processes whose command line names a file of ``folder``."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes().decode()
            except OSError:
                continue
            if folder in command:
                found.append(int(process.name))
    return found


@pytest.mark.slow
def test_an_interruption_ends_the_worker(
    tiny_llama: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(tiny_llama, max_new_tokens=200)
    seen: list[list[int]] = []

    def interrupt() -> None:
        seen.append(group_of(job.output))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_worker(job, "original", tmp_path / "log", "the log", interrupt)
    assert seen[0]
    assert not group_of(job.output)
    assert not (Path(job.output) / OUTCOME_NAME).exists()


@pytest.mark.slow
def test_a_killed_worker_is_said_to_be_killed(
    tiny_llama: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(tiny_llama)

    def kill() -> None:
        for process in group_of(job.output):
            os.kill(process, signal.SIGKILL)
        time.sleep(0.1)

    with pytest.raises(QuantlibError, match="killed by SIGKILL, most likely for lack of memory"):
        run_worker(job, "original", tmp_path / "log", "the log", kill)


def test_the_last_error_of_a_log_is_found(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "INFO loading\n"
        "Traceback (most recent call last):\n"
        '    raise ValueError("first")\n'
        "ValueError: first\n"
        "\n"
        "The above exception was the direct cause of the following exception:\n"
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig\n"
        "  Value error, Unsupported quantization config: bits=4, sym=False\n"
    )
    assert last_lines(log) == (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig\n"
        "  Value error, Unsupported quantization config: bits=4, sym=False"
    )


def test_a_log_without_an_error_ends_with_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("\n".join(f"line {number}" for number in range(20)))
    assert last_lines(log).splitlines() == [f"line {number}" for number in range(12, 20)]
    log.write_text("")
    assert last_lines(log) == ""
