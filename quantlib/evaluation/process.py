"""Starts workers, follows them, and leaves nothing of them behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self, TextIO

from quantlib.errors import QuantlibError
from quantlib.evaluation.job import Job, StreamedJob
from quantlib.runtime.keeper import kept
from quantlib.runtime.process_group import SECONDS_TO_END, end_kept, last_lines

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads sleep
}
_OTHER_ENGINE = (
    "\nif vLLM does not compute such a model here, set validation.engine to transformers"
)


class Workers:
    """Runs jobs by one engine: a context, in which the engine is imported when it is first used.

    Whatever was started is gone when the context ends, and when this process is killed.

    Attributes:
        engine: vllm, transformers or :data:`quantlib.evaluation.job.STREAMED`.
        process: The keeper of the process that imports the engine and forks another for each job;
            None before the first.
    """

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.process: subprocess.Popen[bytes] | None = None
        self._progress: TextIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            end_kept(self.process)
        if self._progress is not None:
            self._progress.close()

    def run(
        self,
        job: Job | StreamedJob,
        label: str,
        log: Path,
        log_address: str,
        part_done: Callable[[], None],
    ) -> int:
        """Runs a job.

        Args:
            job: What to do.
            label: Which model it is, for messages.
            log: Gets everything that the job's process prints.
            log_address: Where the caller keeps the log, for messages.
            part_done: Called after each window, or block.

        Returns:
            The largest memory of its process, or of one that it started, in bytes.

        Raises:
            QuantlibError: The process failed; the message ends with the last lines of its log.
        """
        job_file = Path(job.output) / "job.json"
        job.write(job_file)
        process, progress = self._started(log)
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has failed already, which its exit code tells
            process.stdin.write(json.dumps([str(job_file), str(log)]).encode() + b"\n")
            process.stdin.flush()
        status, peak = None, 0
        for line in progress:
            word, *numbers = line.split()
            if word == "exit":
                status, peak = map(int, numbers)
                break
            part_done()
        if status is None:
            status = process.wait()
        if status != 0:
            hint = _OTHER_ENGINE if self.engine == "vllm" and status > 0 else ""
            raise QuantlibError(
                f"{label}: {_in_words(status)}; its log is {log_address} and ends with:\n"
                f"{last_lines(log)}{hint}"
            )
        return peak * 1024

    def _started(self, log: Path) -> tuple[subprocess.Popen[bytes], TextIO]:
        """The process and what it tells of its jobs; while it imports it prints to ``log``."""
        if self.process is None or self._progress is None:
            read_end, write_end = os.pipe()
            self._progress = os.fdopen(read_end)
            command = [sys.executable, "-m", "quantlib.evaluation.worker"]
            try:
                with log.open("wb") as output:
                    self.process = subprocess.Popen(
                        kept([*command, self.engine, str(write_end)], SECONDS_TO_END),
                        stdin=subprocess.PIPE,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        pass_fds=(write_end,),
                        env=_ENVIRONMENT | os.environ,
                    )
            finally:
                os.close(write_end)
        return self.process, self._progress


def _in_words(status: int) -> str:
    if status >= 0:
        return f"the engine failed (exit code {status})"
    hint = ", most likely for lack of memory" if -status == signal.SIGKILL else ""
    return f"the engine was killed by {signal.Signals(-status).name}{hint}"
