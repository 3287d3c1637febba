"""What a process says while it works: plain lines, or each line as one JSON object.

``QUANTLIB_LOG=json`` turns every line on standard output and error, whoever prints it, into

    {"time": "…Z", "level": "info", "message": "…", "run": "…", "step": "quantize", …}

What is known beside the message is said by :func:`about`: a step's ``step``, ``iteration`` (the
range) and ``key``. What a library writes past Python's streams stays as it is.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from quantlib.errors import Problem

LOG_VARIABLE = "QUANTLIB_LOG"
RUN_VARIABLE = "QUANTLIB_RUN"
"""Environment variable of a step: the id of the run that it is part of."""

FORMS = ("plain", "json")
_LEVEL = re.compile(
    r"(?:\[[\w.]+\] )?(?P<word>debug|info|warning|error|critical)\b"
    r"|\S+:\d+: (?P<category>\w*)Warning:",
    re.IGNORECASE,
)

_fields: dict[str, Any] = {}
"""Of the whole process: a thread that works for a step speaks for it."""


def log_problems() -> list[Problem]:
    """What is wrong with ``QUANTLIB_LOG``."""
    form = os.environ.get(LOG_VARIABLE) or FORMS[0]
    if form in FORMS:
        return []
    return [Problem(LOG_VARIABLE, f"is {form!r}, neither {' nor '.join(FORMS)}")]


def start_log(*, output: bool = True) -> None:
    """Makes lines JSON from now on, where the environment asks for it.

    Args:
        output: Whether those of standard output too, which may be a result.
    """
    if os.environ.get(LOG_VARIABLE) != "json":
        return
    if run := os.environ.get(RUN_VARIABLE):
        _fields["run"] = run
    sys.excepthook = _tell_exception
    sys.stderr = JsonLines(sys.stderr)
    if output:
        sys.stdout = JsonLines(sys.stdout)


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """What lines that are said meanwhile are about; ``level`` is theirs, in the place of their own.

    An error that leaves it takes that along, to the line that tells of the error.
    """
    before = dict(_fields)
    _fields.update({name: value for name, value in fields.items() if value is not None})
    yield
    _fields.clear()
    _fields.update(before)


def message_of(line: str) -> str:
    """What a line of a log says, in either form."""
    with suppress(ValueError, LookupError, TypeError):
        return str(json.loads(line)["message"])
    return line


class JsonLines(io.TextIOBase):
    """A stream that writes each line as a JSON object to another one.

    Args:
        stream: Where the objects go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._begun = stream, ""
        self._lock = threading.RLock()
        atexit.register(self._end)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the other stream."""
        return self._stream.encoding

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """Where what other programs write goes, past this."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Takes a part of a line, a line or several."""
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
            for line in lines:
                self._put(line)
        return len(text)

    def flush(self) -> None:
        """Passes on what was put; a line that has only begun waits for its end."""
        self._stream.flush()

    def record(self, message: str, level: str) -> None:
        """Puts one object."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        with self._lock:
            record = {"time": now, "level": level, "message": message} | _fields
            self._stream.write(json.dumps(record, default=str) + "\n")
            self._stream.flush()

    def _put(self, line: str) -> None:
        said = line.rstrip().split("\r")[-1]  # what a progress bar wrote over is not said
        if said:
            self.record(said, _level_of(said))

    def _end(self) -> None:
        with self._lock:
            line, self._begun = self._begun, ""
            self._put(line)


def _level_of(line: str) -> str:
    found = _LEVEL.match(line)
    if found is None:
        return "info"
    return "warning" if found["word"] is None else found["word"].lower()


def _tell_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A traceback as one object: its lines mean nothing one by one."""
    text = "".join(traceback.format_exception(kind, error, trace)).rstrip()
    if isinstance(sys.stderr, JsonLines):
        sys.stderr.record(text, "critical")
