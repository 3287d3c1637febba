"""Lines of progress: how far, and how long it will take."""

from __future__ import annotations

import pytest

from quantlib.runtime import progress
from quantlib.runtime.progress import progress_bar, progress_in


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_what_is_left_goes_by_the_units_after_the_first(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("original by vllm", 6, "windows") as advance:
        # An engine starts for half a minute, and then a window takes ten seconds.
        for seconds in (30.0, 10.0, 10.0, 1.0, 9.0, 10.0, 10.0):
            clock.now += seconds
            advance(int(seconds > 1.0))
    assert capsys.readouterr().err.splitlines() == [
        "original by vllm: 1/6 windows, 30.0 s",
        "original by vllm: 2/6 windows, 40.0 s, about 40 s left",
        "original by vllm: 3/6 windows, 50.0 s, about 30 s left",
        "original by vllm: 4/6 windows, 60.0 s, about 20 s left",
        "original by vllm: 5/6 windows, 70.0 s, about 10 s left",
        "original by vllm: 6/6 windows, 80.0 s",
    ]


def test_what_an_earlier_run_did_is_not_taken_for_speed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("quantize 0:30", 30, "blocks") as advance:
        advance(10)
        clock.now += 200
        advance(1)
    assert capsys.readouterr().err == "quantize 0:30: 11/30 blocks, 200.0 s, about 63 min left\n"


def test_bytes_are_counted_in_hundredths(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("Reading", 3_000_000_000, "bytes") as advance:
        for _ in range(2):
            clock.now += 36_000
            advance(1_000_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "Reading: 33 %, 36000.0 s",
        "Reading: 66 %, 72000.0 s, about 10 h left",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("quantize 0:8: 5/8 blocks, 31.0 s, about 18 s left", "5/8 blocks, about 18 s left"),
        ("calibrate: 22/22 blocks, 140.2 s", "22/22 blocks"),
        ("Reading: 33 %, 36000.0 s, about 20 h left", "33 %, about 20 h left"),
    ],
)
def test_a_line_is_read_back(line: str, expected: str) -> None:
    assert progress_in(line) == (line.rpartition(": ")[0], expected)


@pytest.mark.parametrize("line", ["", "plan: done", "62 rows read: 62 as text", "a: 1/2 blocks"])
def test_what_is_no_progress(line: str) -> None:
    assert progress_in(line) is None
