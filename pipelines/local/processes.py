"""Runs each step as a process of this Python environment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import Protocol

from pipelines.local.calls import Call
from pipelines.local.gpus import VISIBLE_VARIABLE
from quantlib.runtime.keeper import kept
from quantlib.runtime.process_group import SECONDS_FOR_KEEPER, SECONDS_TO_END


class Runner(Protocol):
    """Starts steps."""

    async def run(self, call: Call) -> int:
        """Runs a step to its end and returns its exit code.

        What it started is gone when this returns, and also when it is cancelled.

        Raises:
            StepError: The step could not be started.
        """


class ProcessRunner:
    """Each step is a process in a session of its own, with a keeper between it and this one.

    Its interpreter is the one that runs this. A step that is
    cancelled gets SIGTERM with its whole group, and is killed after ``grace`` seconds with all that
    it has started; so it is when this process is killed, and what a step leaves behind when it ends
    is killed too, as it would be with its container.

    A step inherits the lock of the run's folder: no other run starts there while it lives.

    Attributes:
        grace: Seconds between SIGTERM and SIGKILL: more than a step gives its own workers.
    """

    def __init__(self, grace: float = SECONDS_TO_END + 2 * SECONDS_FOR_KEEPER) -> None:
        self.grace = grace

    async def run(self, call: Call) -> int:
        """Runs a step, with its output appended to ``call.log``."""
        _, *arguments = call.argv
        with call.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *kept([sys.executable, *arguments], self.grace),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(call),
                start_new_session=True,
                close_fds=False,
            )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            _signal(process, signal.SIGTERM)
            # A second cancellation, by a second Ctrl-C, ends the wait as the grace period does.
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(process.wait(), self.grace + SECONDS_FOR_KEEPER)
            raise
        finally:
            if process.returncode is None:
                await asyncio.shield(_end(process))
        return code if code >= 0 else 128 - code


async def _end(process: asyncio.subprocess.Process) -> None:
    """Has the keeper kill its command at once."""
    _signal(process, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), SECONDS_FOR_KEEPER)
    _signal(process, signal.SIGKILL)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _environment(call: Call) -> dict[str, str]:
    defaults = {"OMP_NUM_THREADS": str(call.threads), "PYTHONUNBUFFERED": "1"}
    visible = {VISIBLE_VARIABLE: ",".join(call.gpus)} if call.gpus else {}
    return {**defaults, **os.environ, **visible, **call.environment}
