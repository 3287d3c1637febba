"""What a run shows while it goes on."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from pipelines.graph import Graph, Step
from pipelines.local.state import State, StepRun
from pipelines.local.status import LiveStatus, PlainStatus, log_tail, open_status


def graph_of(*steps: str) -> Graph:
    return Graph("toy", "", (), tuple(Step(step, {}) for step in steps))


def terminal(height: int = 40) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80, height=height)


def shown(status: LiveStatus, console: Console) -> list[str]:
    """The table's rows as text, without the header."""
    with console.capture() as capture:
        console.print(status._table())
    text = re.sub(r"\x1b\[[0-9;]*m", "", capture.get())
    return [" ".join(line.split()) for line in text.splitlines()[1:]]


def test_table_shows_every_step_from_the_start(tmp_path: Path) -> None:
    console = terminal()
    status = LiveStatus(graph_of("fetch", "quantize", "merge"), console)
    assert shown(status, console) == ["fetch waiting", "quantize waiting", "merge waiting"]
    fetch = StepRun("fetch", None, "fetch", tmp_path, State.SUCCEEDED, started=1.0, seconds=2.04)
    second = StepRun("quantize", 1, "quantize[8:16]", tmp_path / "second")
    first = StepRun("quantize", 0, "quantize[0:8]", tmp_path, State.RUNNING, time.monotonic() - 3)
    (tmp_path / "log.txt").write_text("old\nblock 3 [green] of 8\n\n")
    judged = StepRun("merge", None, "merge", tmp_path / "merge", State.RUNNING, time.monotonic())
    judged.folder.mkdir()
    log = judged.folder / "log.txt"
    log.write_text("original by transformers: 3/20 windows, 21.0 s, about 40 s left\n")
    for run in (fetch, second, first, judged):
        status.changed(run)
        status.changed(run)
    assert shown(status, console) == [
        "fetch succeeded 2.0",
        "quantize[0:8] running 3 block 3 [green] of 8",
        "quantize[8:16] waiting",
        "merge running 0 3/20 windows, about 40 s left (original by …",
    ]


def test_table_folds_what_does_not_fit(tmp_path: Path) -> None:
    console = terminal(height=12)
    status = LiveStatus(graph_of("fetch", "quantize", "merge"), console)
    for index in range(64):
        run = StepRun("quantize", index, f"quantize[{index}]", tmp_path / str(index))
        if index < 10:
            run.state, run.started = State.SUCCEEDED, 1.0
        elif index < 12:
            run.state, run.started = State.RUNNING, time.monotonic()
        status.changed(run)
    assert shown(status, console) == [
        "fetch waiting",
        "quantize (10 of 64) succeeded",
        "quantize (52 of 64) waiting",
        "quantize[10] running 0",
        "quantize[11] running 0",
        "merge waiting",
    ]


def test_plain_lines_carry_the_time_and_the_error(tmp_path: Path) -> None:
    output = io.StringIO()
    console = Console(file=output, width=20)
    status = open_status(graph_of("fetch"), console)
    assert isinstance(status, PlainStatus)
    run = StepRun("fetch", None, "fetch[a]", tmp_path)
    with status:
        status.changed(run)
        run.state, run.started = State.RUNNING, 1.0
        status.changed(run)
        run.state, run.seconds, run.error = State.FAILED, 1.26, "exited with code 2, and more"
        status.changed(run)
    lines = output.getvalue().splitlines()
    assert [line[8:] for line in lines] == [
        " fetch[a]: running",
        " fetch[a]: failed in 1.3 s (exited with code 2, and more)",
    ]
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)


def test_plain_lines_say_now_and_then_how_far_a_step_is(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    run = StepRun("quantize", 0, "quantize[0:8]", tmp_path, State.RUNNING, time.monotonic())
    log = tmp_path / "log.txt"
    log.write_text("quantize 0:8: 5/8 blocks, 31.0 s, about 18 s left\n")
    with PlainStatus(console, between=0.05) as status:
        status.changed(run)
        wait_for(lambda: console.file.getvalue().count("5/8 blocks") == 1)  # type: ignore[attr-defined]
        log.write_text("a remark, which is not how far it is\n")
        time.sleep(0.2)
        log.write_text('{"level": "info", "message": "quantize 0:8: 8/8 blocks, 50.2 s"}\n')
        wait_for(lambda: "8/8 blocks" in console.file.getvalue())  # type: ignore[attr-defined]
        run.state = State.SUCCEEDED
        status.changed(run)
    told = [line[9:] for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert told[:3] == [
        "quantize[0:8]: running",
        "quantize[0:8]: 5/8 blocks, about 18 s left",
        "quantize[0:8]: 8/8 blocks",
    ]
    assert len(told) == 4


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_live_table_is_drawn_on_a_terminal() -> None:
    console = terminal()
    with open_status(graph_of("fetch"), console) as status:
        assert isinstance(status, LiveStatus)
    assert "fetch" in console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO here


def test_log_tail_reads_what_a_terminal_would_show(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert log_tail(log) == []
    log.write_bytes(b"x" * 100_000 + b"\none\n\x1b[31mtwo\x1b[0m\n 10%\r 50%\r100% \xff\n\n")
    assert log_tail(log) == ["100% \ufffd"]
    assert log_tail(log, 3) == ["one", "two", "100% \ufffd"]
