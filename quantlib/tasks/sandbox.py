"""Runs a program that a model wrote, away from the network and from what this process knows.

:mod:`.shut_off` takes from it what it is not to have; docs/tasks.md says what is left to the
container.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from quantlib.runtime.keeper import kept
from quantlib.runtime.process_group import end_kept

SECONDS = 10.0
"""What a program may take."""

_OUTPUT = 2000
_PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
"""What starts the program needs these; the program itself gets none."""


def outcome_of(program: str, seconds: float = SECONDS) -> str:
    """Runs a program, and ends all that it has started.

    Args:
        program: Python.
        seconds: What it may take.

    Returns:
        Empty where it ended well, else how it ended: the last line that it printed, or its code.
    """
    with tempfile.TemporaryDirectory(prefix="quantlib-task-") as folder:
        path = Path(folder) / "program.py"
        path.write_text(program, encoding="utf-8", errors="replace")
        shut_off = [sys.executable, "-m", "quantlib.tasks.shut_off", str(path)]
        running = subprocess.Popen(
            kept(shut_off, 0),
            cwd=folder,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            _, said = running.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"did not end within {seconds:.0f} s"
        finally:
            end_kept(running, 0)
        if running.returncode == 0:
            return ""
        lines = said[-_OUTPUT:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"ended with {running.returncode}"
