"""Runs each step as a process of this Python environment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import Protocol

from components._images import IMAGE_VARIABLE
from pipelines.launch import Launch
from quantlib.errors import StepError


class Runner(Protocol):
    """Starts steps."""

    async def run(self, launch: Launch) -> int:
        """Runs a step to its end and returns its exit code.

        What it started is gone when this returns, and also when it is cancelled.

        Raises:
            StepError: The step could not be started.
        """


class ProcessRunner:
    """Each step is a process, and the leader of a process group of its own.

    ``python`` as the first word of a command is the interpreter that runs this. A step that is
    cancelled gets SIGTERM with its whole group, and SIGKILL after ``grace`` seconds; what a step
    leaves behind when it ends is killed, as it would be with its container.

    Attributes:
        grace: Seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, grace: float = 10.0) -> None:
        self.grace = grace

    async def run(self, launch: Launch) -> int:
        """Runs a step, with its output appended to ``launch.log``."""
        command, *arguments = launch.argv
        with launch.log.open("ab") as log:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable if command == "python" else command,
                    *arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=_environment(launch),
                    start_new_session=True,
                )
            except OSError as error:
                raise StepError(launch.name, f"{command} cannot be started: {error}") from None
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            _kill_group(process.pid, signal.SIGTERM)
            # A second cancellation, by a second Ctrl-C, ends the wait as the grace period does.
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(process.wait(), self.grace)
            raise
        finally:
            _kill_group(process.pid, signal.SIGKILL)
        return code if code >= 0 else 128 - code


def _environment(launch: Launch) -> dict[str, str]:
    defaults = {"OMP_NUM_THREADS": str(launch.threads), "PYTHONUNBUFFERED": "1"}
    of_pipeline = dict(launch.environment)
    of_pipeline.pop(IMAGE_VARIABLE, None)  # a process runs in no image, whatever the pipeline says
    return {**defaults, **os.environ, **of_pipeline}


def _kill_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)
