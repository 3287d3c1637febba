"""Runs the command line in the process of the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SMALL = [
    "--group-size", "32", "--num-samples", "8", "--sequence-length", "64", "--num-ranges", "2",
]  # fmt: skip
"""Options of a run of ``quantlib quantize`` that takes a second."""


@dataclass(frozen=True)
class Done:
    """What a call of the command line gave."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


def files_below(folder: Path) -> set[str]:
    """All files and folders in one, by their path in it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
