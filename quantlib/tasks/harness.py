"""Asks a served model the items of tasks, by lm-eval in a process of its own."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from quantlib.errors import InvalidInputError, StepError
from quantlib.runtime.distribution import pip_install
from quantlib.runtime.keeper import kept
from quantlib.runtime.process_group import end_kept, last_lines

_SECONDS_TO_STOP = 5.0
_PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR", "HOME", "LANG", "VIRTUAL_ENV")
"""What the harness needs of the environment. Keys of stores and hubs are not passed on: it runs
programs that models wrote."""


@dataclass(frozen=True)
class Request:
    """The items of one task, asked of one server with one seed.

    Attributes:
        task: A key of :data:`quantlib.tasks.kinds.KINDS`.
        items: JSON Lines, one row a line.
        output: Gets a JSON list with ``answer``, ``score`` and ``valid`` of each row, in order.
        url: Of the server, without ``/v1``.
        model: What the server calls it.
        chat: Whether it is asked through its chat template.
        seed: Of each request.
        temperature: Of sampling.
        max_tokens: Of an answer.
        concurrency: Requests at a time.
        request_timeout: Seconds that an answer may take.
    """

    task: str
    items: str
    output: str
    url: str
    model: str
    chat: bool
    seed: int
    temperature: float
    max_tokens: int
    concurrency: int
    request_timeout: int


def harness_version() -> str:
    """The version of lm-eval that is installed.

    Raises:
        InvalidInputError: None is.
    """
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        raise InvalidInputError.one(
            "tasks.run", "needs lm-eval, which is not installed", pip_install("tasks")
        ) from None


class Harness:
    """The process that asks; see :func:`harness`."""

    def __init__(self, log: Path) -> None:
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        # The server is on this machine, and nothing else is to be asked.
        environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "NO_PROXY": "*"}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                kept([sys.executable, "-m", "quantlib.tasks.harness_worker"], _SECONDS_TO_STOP),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
                env=environment,
            )
        self.log = log

    def ask(self, request: Request, seconds: float) -> None:
        """Asks and scores; the request's output file is whole afterwards.

        Args:
            request: What to ask.
            seconds: What all of it may take.

        Raises:
            StepError: An answer did not come, or not in time.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
        self.process.stdin.flush()
        said = self._answer(request, seconds)
        if error := said.get("error"):
            raise StepError(
                "tasks",
                f"{request.task} could not be asked: {error}; the log ends with:\n"
                f"{last_lines(self.log)}",
            )

    def _answer(self, request: Request, seconds: float) -> Mapping[str, str]:
        output = self.process.stdout
        assert output is not None
        until, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([output], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise StepError(
                    "tasks",
                    f"{request.task} was not answered within {seconds:.0f} s; ask fewer items "
                    "(samples), allow shorter answers (max_tokens), or raise tasks.task_timeout",
                )
            piece = os.read(output.fileno(), 1 << 16)
            if not piece:
                raise StepError(
                    "tasks",
                    f"lm-eval ended at {request.task}; its log ends with:\n{last_lines(self.log)}",
                )
            line += piece
        found: Mapping[str, str] = json.loads(line)
        return found


@contextmanager
def harness(log: Path) -> Iterator[Harness]:
    """Starts the harness; when the context ends, all that it has started is gone.

    Args:
        log: Gets what it prints.
    """
    started = Harness(log)
    try:
        yield started
    finally:
        end_kept(started.process, _SECONDS_TO_STOP)
