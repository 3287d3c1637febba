"""The runs of a comparison: where their reports are, and what they are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantlib.errors import InvalidInputError, Problem
from quantlib.report.model import JSON_NAME, SCHEMA, Report, StepRun
from quantlib.runtime.foreign_json import parse_json

LETTERS = "ABCDEFG"
"""What runs are called."""

MOST_RUNS = len(LETTERS)
"""As many as there are colours and markers."""

_JUDGING = ("likeness", "reference", "rounding", "comparison", "validate")
_BY_TASKS = ("answers", "loads", "tasks")
_BESIDE = ("plan", *_JUDGING, *_BY_TASKS, "publish", "gate")
"""Steps that check, judge and deliver, and make nothing of the checkpoint."""

_ADOPTING = "adopt"
"""The step that takes a checkpoint that is there already, in the place of those that make one."""

_PLACES = (JSON_NAME, f"validate/artifacts/{JSON_NAME}")
_ADDRESS = "publish/parameters/address"
_PUBLISHED = re.compile("[0-9a-f]{64}")
"""How the folder of a published checkpoint is called."""


@dataclass(frozen=True)
class Run:
    """One of the runs.

    Attributes:
        letter: A, B, ...: what tables and charts call it.
        name: Its folder or file.
        report: What is known of it.
    """

    letter: str
    name: str
    report: Report

    @property
    def seconds(self) -> float | None:
        """Time of the steps that make the checkpoint; None where one was not recorded."""
        taken = [step.seconds for step in self._making]
        return None if not taken or None in taken else sum(filter(None, taken))

    @property
    def peak_mib(self) -> float | None:
        """Largest memory of such a step; None where none was recorded."""
        peaks = (step.peak_mib for step in self._making)
        return max((peak for peak in peaks if peak is not None), default=None)

    @property
    def _making(self) -> list[StepRun]:
        """The steps that make the checkpoint; none where it was there already, and was judged."""
        steps = [step for step in self.report.steps if step.step not in _BESIDE]
        return [] if any(step.step == _ADOPTING for step in steps) else steps


def find_report(path: Path) -> Path:
    """The report of a run.

    Args:
        path: A report, a checkpoint's folder, a published folder, or a folder of a pipeline run.

    Raises:
        InvalidInputError: There is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise InvalidInputError.one(str(path), "there is no such file or folder")
    places = [path / place for place in _PLACES]
    if (address := path / _ADDRESS).is_file():
        places.append(Path(address.read_text(encoding="utf-8").strip()) / JSON_NAME)
    for place in places:
        if place.is_file():
            return place
    raise InvalidInputError.one(
        str(path),
        f"holds no {JSON_NAME}",
        "give a folder that `quantlib quantize` or publish wrote, a pipeline's run folder, or a "
        "report",
    )


def read_runs(paths: Sequence[Path]) -> tuple[Run, ...]:
    """Reads the reports of runs.

    Raises:
        InvalidInputError: There are too few or too many, or one is no report; all faults at once.
    """
    if not 2 <= len(paths) <= MOST_RUNS:
        raise InvalidInputError.one(
            "RUNS", f"{len(paths)} given", f"give 2 to {MOST_RUNS} of them: RUN_A RUN_B"
        )
    runs: list[Run] = []
    problems: list[Problem] = []
    for letter, path in zip(LETTERS, paths, strict=False):
        try:
            runs.append(Run(letter, _name(path), _read(find_report(path))))
        except InvalidInputError as error:
            problems += error.problems
    if problems:
        raise InvalidInputError(problems)
    return tuple(runs)


def _name(path: Path) -> str:
    path = path.absolute()
    name = path.parent.name if path.name == JSON_NAME else path.name
    return short_digest(name) if _PUBLISHED.fullmatch(name) else name


def _read(path: Path) -> Report:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInputError.one(str(path), f"cannot be read: {error.strerror}") from None
    value = parse_json(data, str(path), "so it is no quantization report")
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema is None:
        raise InvalidInputError.one(str(path), "is no quantization report")
    if schema != SCHEMA:
        raise InvalidInputError.one(
            str(path), f"has the schema {schema!r}", f"this quantlib reads {SCHEMA}"
        )
    return Report.from_json(data, origin=str(path))


def short_digest(digest: str | None) -> str:
    """The first 12 hexadecimal digits of a digest."""
    return "" if digest is None else digest.removeprefix("sha256:")[:12]
