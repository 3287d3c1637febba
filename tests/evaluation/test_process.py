"""Workers as processes: what they leave, what they say, how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import are_gone, descendants

from quantlib.errors import QuantlibError
from quantlib.evaluation.job import OUTCOME_NAME, REFERENCE_NAME, Job
from quantlib.evaluation.process import Workers

MakeJob = Callable[..., Job]


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers("transformers") as opened:
        yield opened


@pytest.mark.slow
def test_jobs_write_their_files_and_report_each_window(
    tiny_llama: Path, make_job: MakeJob, tmp_path: Path, workers: Workers
) -> None:
    for name in ("first", "second"):
        job = make_job(tiny_llama)
        done: list[int] = []
        workers.run(job, "original", tmp_path / name, "the log", lambda: done.append(1))
        assert len(done) == 4
        written = {path.name for path in Path(job.output).iterdir()}
        assert written == {"job.json", REFERENCE_NAME, OUTCOME_NAME}


@pytest.mark.slow
def test_a_job_finds_everything_imported_but_its_family(tiny_llama: Path) -> None:
    """Else each job of a validation would spend seconds on what the first one threw away."""
    code = (
        "import sys, torch; from pathlib import Path; "
        "from quantlib.evaluation.transformers_engine import load_model, preload; "
        "preload(); before = set(sys.modules); load_model(Path(sys.argv[1]), torch.float32); "
        "print(*sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-c", code, str(tiny_llama)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = done.stdout.split()
    assert "transformers.models.llama.modeling_llama" in imported
    assert len(imported) < 50


@pytest.mark.slow
def test_a_failed_job_is_quoted_and_harms_no_other(
    tiny_llama: Path, make_job: MakeJob, tmp_path: Path, workers: Workers
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(QuantlibError) as error:
        workers.run(make_job(tmp_path / "empty"), "original", tmp_path / "log", "X/log", print)
    message = str(error.value)
    assert message.startswith("original: the engine failed (exit code 2); its log is X/log")
    assert "Error: " in message
    assert len(message.splitlines()) <= 9
    assert "config.json: is missing" in (tmp_path / "log").read_text()
    job = make_job(tiny_llama)
    peak = workers.run(job, "original", tmp_path / "log", "the log", lambda: None)
    assert 100 << 20 < peak < 8 << 30  # torch alone takes more
    assert (Path(job.output) / OUTCOME_NAME).exists()


@pytest.mark.slow
def test_an_engine_that_cannot_be_imported_is_quoted(
    tiny_llama: Path, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "transformers.py").write_text("raise ImportError('no such engine')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Workers("transformers") as workers, pytest.raises(QuantlibError, match="no such engine"):
        workers.run(make_job(tiny_llama), "original", tmp_path / "log", "the log", print)


def started_by(workers: Workers) -> list[int]:
    """The keeper's child, which imports the engine, and the job that it has forked."""
    assert workers.process is not None
    return descendants(workers.process.pid)


@pytest.mark.slow
def test_an_interruption_ends_the_workers(
    tiny_llama: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(tiny_llama, windows=2000)
    seen: list[list[int]] = []
    with Workers("transformers") as workers:

        def interrupt() -> None:
            seen.append(started_by(workers))
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            workers.run(job, "original", tmp_path / "log", "the log", interrupt)
    assert len(seen[0]) >= 2
    assert are_gone(seen[0])
    assert not (Path(job.output) / OUTCOME_NAME).exists()


@pytest.mark.slow
def test_a_killed_job_is_said_to_be_killed(
    tiny_llama: Path, make_job: MakeJob, tmp_path: Path, workers: Workers
) -> None:
    def kill() -> None:
        for imported in started_by(workers):
            for job in descendants(imported):  # the windows before its end were said already
                os.kill(job, signal.SIGKILL)

    with pytest.raises(QuantlibError, match="killed by SIGKILL, most likely for lack of memory"):
        workers.run(make_job(tiny_llama, windows=2000), "model", tmp_path / "log", "X", kill)
