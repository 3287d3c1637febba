"""Groups of processes and what their logs end with."""

import subprocess
import sys
from pathlib import Path

from quantlib.runtime.process_group import last_lines

OTHERS = """
import os, subprocess, sys
from quantlib.runtime.process_group import end_others, living
ignoring = "import signal, time; signal.signal(15, signal.SIG_IGN); print(); time.sleep(60)"
for code in (ignoring, "import time; print(); time.sleep(60)"):
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
before = living(os.getpid())
end_others(seconds=0.2)
print(len(before), living(os.getpid()) == [os.getpid()])
"""


def test_a_process_ends_the_others_of_its_group() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OTHERS], capture_output=True, check=True, start_new_session=True
    )
    assert done.stdout == b"3 True\n"


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


def test_what_another_process_of_vllm_logged_is_found(tmp_path: Path) -> None:
    log = tmp_path / "log"
    worker = "(Worker_TP1 pid=8757) ERROR 11-25 22:33:46 [multiproc_executor.py:953] "
    log.write_text(
        f"{worker}WorkerProc failed to start.\n"
        f"{worker}Traceback (most recent call last):\n"
        f"{worker}RuntimeError: start (64) + length (64)\n"
        f"{worker}exceeds dimension size (100).\n"
        "(Worker_TP0 pid=8756) INFO 11-25 22:33:47 [base_loader.py:82] Initializing model\n"
        "Traceback (most recent call last):\n"
        "Exception: WorkerProc initialization failed due to an exception in a background process.\n"
    )
    assert last_lines(log) == (
        "RuntimeError: start (64) + length (64)\nexceeds dimension size (100)."
    )
    log.write_text(
        "(MainProcess pid=2094) ERROR 11-25 22:32:35 [multiproc_executor.py:315] Worker proc "
        "VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor.\n"
        "RuntimeError: cancelled\n"
        "resource_tracker: There appear to be 1 leaked semaphore objects\n"
    )
    assert last_lines(log).startswith("Worker proc VllmWorker-1 died unexpectedly (exit code: -9)")
    log.write_text("RuntimeError: cancelled\n")
    assert last_lines(log) == "RuntimeError: cancelled"


def test_a_log_without_an_error_ends_with_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("\n".join(f"line {number}" for number in range(20)))
    assert last_lines(log).splitlines() == [f"line {number}" for number in range(12, 20)]
    log.write_text("")
    assert last_lines(log) == ""
