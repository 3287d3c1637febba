"""Runs the command line in the process of the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Done:
    """What a call of the command line gave."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]
