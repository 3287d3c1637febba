"""What a program of a model can do, and what it cannot."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from quantlib.tasks.sandbox import outcome_of


def test_a_program_that_ends_well_and_one_that_does_not() -> None:
    assert outcome_of("assert 1 + 1 == 2") == ""
    assert outcome_of("assert 1 + 1 == 3, 'not so'") == "AssertionError: not so"


@pytest.mark.parametrize(
    ("program", "refused"),
    [
        ("import socket; socket.socket()", "Operation not permitted"),
        ("import socket; socket.socket(socket.AF_INET6)", "Operation not permitted"),
        ("import urllib.request as r; r.urlopen('http://127.0.0.1:1')", "Operation not permitted"),
        ("x = bytearray(2 << 30)", "MemoryError"),
        ("open('large', 'wb').write(bytes(32 << 20))", "File too large"),
    ],
)
def test_what_is_refused(program: str, refused: str) -> None:
    assert refused in outcome_of(program)


def test_sockets_of_this_machine_are_let_be() -> None:
    assert outcome_of("import socket; socket.socketpair()") == ""


def test_it_knows_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not for programs")
    program = "import os; assert 'AWS_SECRET_ACCESS_KEY' not in os.environ, os.environ"
    assert outcome_of(program) == ""


def test_it_ends_with_its_time() -> None:
    started = time.monotonic()
    assert outcome_of("while True: pass", seconds=1) == "did not end within 1 s"
    assert time.monotonic() - started < 8


def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    program = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    open({str(pid)!r}, "w").write(str(os.getpid()))
    time.sleep(60)
while not os.path.exists({str(pid)!r}):
    time.sleep(0.01)
"""
    assert outcome_of(program) == ""
    assert not Path(f"/proc/{pid.read_text()}").exists()


def test_its_folder_goes_with_it(tmp_path: Path) -> None:
    told = tmp_path / "told"
    program = f"import os; open('mine', 'w'); open({str(told)!r}, 'w').write(os.getcwd())"
    assert outcome_of(program) == ""
    assert not os.path.exists(told.read_text())
