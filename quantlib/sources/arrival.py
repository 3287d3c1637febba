"""Takes a model from elsewhere into the store, file by file.

A file is committed as soon as it has come whole and every number in it was looked at, and is noted
as arrived; a run that goes on after an interruption takes what is missing. Only the files on their
way need room on the disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import Event

from pydantic import ValidationError

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import TensorInfo
from quantlib.checkpoint.index import copy_problems
from quantlib.errors import InvalidInputError, Problem, QuantlibError
from quantlib.runtime.progress import Advance
from quantlib.sources.inspection import model_files
from quantlib.sources.scan import ShowProgress
from quantlib.store import FileRecord, LocalStore, StepOutput

AT_ONCE = 4
"""Files that are on their way at the same time."""

_ARRIVED = "arrived"


@dataclass(frozen=True)
class Arrived:
    """A file that has come.

    Attributes:
        record: What it is.
        problems: What is wrong with it; it was not taken over if anything is.
    """

    record: FileRecord
    problems: tuple[Problem, ...] = ()


Bring = Callable[[str, tuple[TensorInfo, ...], Advance], Arrived]
"""Brings a file into the store.

Takes its name, the tensors that it holds, and what is called with the number of bytes that came.
"""


def bring_model(
    output: StepOutput, checkpoint: Checkpoint, bring: Bring, progress: ShowProgress
) -> None:
    """Brings what of a model's files the store has not got from an earlier run of the step.

    Args:
        output: The step's.
        checkpoint: The model's headers, where it is.
        bring: Brings one file.
        progress: Shows how far it is.

    Raises:
        InvalidInputError: Something is wrong with the weights; all problems at once. Nothing is
            committed.
        QuantlibError: A file could not be brought. Those that have come are kept.
    """
    tensors: dict[str, list[TensorInfo]] = defaultdict(list)
    for info in (*checkpoint.tensors.values(), *checkpoint.copies):
        tensors[info.file].append(info)
    arrived = _arrived_before(output)
    missing = [name for name in model_files(checkpoint) if name not in arrived]
    total = sum(checkpoint.source.size(name) for name in missing)
    problems: list[Problem] = []
    failure: QuantlibError | None = None
    stopped = Event()

    def bring_unless_stopped(name: str, advance: Advance) -> Arrived | None:
        return None if stopped.is_set() else bring(name, tuple(tensors.get(name, ())), advance)

    with (
        progress("Fetching", total, "bytes") as advance,
        ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch") as pool,
    ):
        waiting = {pool.submit(bring_unless_stopped, name, advance): name for name in missing}
        try:
            for future in as_completed(waiting):
                try:
                    came = future.result()
                except QuantlibError as error:
                    # Those that have not begun do not begin; those on their way may still come.
                    failure = failure or error
                    stopped.set()
                    continue
                if came is None:
                    continue
                problems += came.problems
                if not came.problems:
                    arrived[waiting[future]] = came.record
                    _note(output, arrived)
        finally:
            stopped.set()
    if failure is not None:
        raise failure
    problems += copy_problems(checkpoint.source, checkpoint.tensors, checkpoint.copies)
    if problems:
        raise InvalidInputError(problems)
    for name, record in arrived.items():
        output.add_reference(name, record)


def room_needed(output: StepOutput, sizes: Iterable[int]) -> int:
    """Bytes of local disk that files take on their way, at most."""
    if isinstance(output.store, LocalStore):
        return sum(sizes)
    return sum(sorted(sizes, reverse=True)[:AT_ONCE])


def _arrived_before(output: StepOutput) -> dict[str, FileRecord]:
    state = output.partial.read(output.scratch) or {}
    try:
        noted = {
            str(name): FileRecord.model_validate(record)
            for name, record in dict(state.get(_ARRIVED) or {}).items()
        }
    except (ValidationError, TypeError, ValueError):
        return {}
    return {name: record for name, record in noted.items() if output.has(record)}


def _note(output: StepOutput, arrived: Mapping[str, FileRecord]) -> None:
    noted = {name: record.model_dump(exclude_none=True) for name, record in arrived.items()}
    output.partial.write(output.scratch, [], {_ARRIVED: noted})
