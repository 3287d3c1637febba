"""Groups of processes and what their logs end with."""

import signal
import subprocess
import sys
from pathlib import Path

from quantlib.process_group import end_group, last_lines, living

STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    print("up", flush=True)
time.sleep(60)
"""


def test_a_group_that_ignores_sigterm_is_gone_with_its_children() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"up\n"
        assert len(living(process.pid)) == 2
        end_group(process, seconds=0.2)
    assert process.returncode == -signal.SIGKILL
    assert not living(process.pid)


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
