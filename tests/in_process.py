"""Runs a workflow's steps in the process of the test, which has imported what they need already."""

from __future__ import annotations

import contextlib
import signal
import sys

import pytest

from pipelines.local.calls import Call
from quantlib.steps.__main__ import main


class InProcess:
    """A runner of real steps: one at a time, with the log, environment and exit code of a process.

    A process takes seconds to import torch and transformers, and a run has many of them.
    """

    async def run(self, call: Call) -> int:
        """Runs a step, with its output appended to ``call.log``."""
        _, _, *arguments = call.argv
        handler = signal.getsignal(signal.SIGTERM)
        with (
            pytest.MonkeyPatch.context() as patch,
            call.log.open("a") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            patch.setattr(sys, "argv", arguments)
            for name, value in call.environment.items():
                patch.setenv(name, value)
            try:
                return main()
            finally:
                signal.signal(signal.SIGTERM, handler)
