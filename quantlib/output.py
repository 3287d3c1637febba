"""The folder that ``quantlib quantize`` writes.

A checkpoint is made in a work folder inside of the output and then moved into its place file by
file, the report before the last and ``config.json`` last: without it nothing takes the folder for
a model. So a mounted volume, a folder whose parent cannot be written to and a symbolic link to a
folder are written as any other, and nothing is left beside them.

What is replaced is what this project wrote: the files that the folder's report names, as the
report says that they are.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from quantlib.checkpoint.checkpoint import CONFIG_NAME
from quantlib.checks.places import writable_problems
from quantlib.errors import InvalidInputError, Problem, QuantlibError
from quantlib.report.html import render_html
from quantlib.report.model import HTML_NAME, JSON_NAME, Report
from quantlib.store import Receipt, Store

WORK_NAME = ".quantlib-work"
"""Folder in the output: the default store, and the checkpoint in the making."""

_MADE = "checkpoint"
_LOCK = "lock"
_SCHEMA = "quantlib/report/"
_HASHED_BYTES = 64 << 20
"""Larger files are told by their size alone: what takes minutes is no check before work."""

_SHOWN = 3
_OTHER = "choose another"


def output_problems(output: Path, *, overwrite: bool) -> list[Problem]:
    """Why a folder cannot become the output; what it must not be is asked elsewhere."""
    where = str(output)
    try:
        if output.is_symlink() and not output.exists():
            target = os.readlink(output)
            return [Problem(where, f"is a symbolic link to {target}, which is not there", _OTHER)]
        if output.exists() and not output.is_dir():
            return [Problem(where, "is there and is no folder", _OTHER)]
        problems = _content_problems(output, overwrite) if output.is_dir() else []
    except OSError as error:
        return [Problem(where, f"cannot be read: {error.strerror}", _OTHER)]
    return problems + writable_problems(output)


def _content_problems(output: Path, overwrite: bool) -> list[Problem]:
    where = str(output)
    names = _content(output)
    if not names:
        return []
    complete, made = _written(output), _written(output / WORK_NAME / _MADE)
    strangers = [
        name
        for name in sorted(names)
        if not any(_is_as_written(output / name, own.get(name)) for own in (complete, made))
    ]
    if complete or made:
        if strangers:
            shown = ", ".join(strangers[:_SHOWN])
            shown += f" and {len(strangers) - _SHOWN} more" if len(strangers) > _SHOWN else ""
            what = f"holds what quantlib did not write, or what was changed since: {shown}"
            return [Problem(where, what, "move that away, or choose another")]
        # What an interrupted run had moved already is not asked for again.
        if overwrite or not names.difference(made):
            return []
        return [Problem(where, "is not empty", "choose another, or give --overwrite")]
    what = "is not empty"
    if overwrite:
        what += f", and has no {JSON_NAME} that says that quantlib wrote it"
    return [Problem(where, what, "choose another, or an empty one")]


def _content(output: Path) -> set[str]:
    """All files in the output, links among them, and empty folders; without the work folder."""
    found = set()
    for parent, folders, files in os.walk(output, onerror=_raise):
        place = Path(parent)
        if place == output:
            folders[:] = [name for name in folders if name != WORK_NAME]
            if os.path.ismount(output) and "lost+found" in folders:  # a fresh ext file system
                folders.remove("lost+found")
        links = [name for name in folders if (place / name).is_symlink()]
        for name in [*files, *links]:
            found.add((place / name).relative_to(output).as_posix())
        if not folders and not files and place != output:
            found.add(place.relative_to(output).as_posix())
    return found


def _raise(error: OSError) -> None:
    raise error


def _written(folder: Path) -> dict[str, Mapping[str, Any]]:
    """What a report says was written to a folder: the record of each file; empty without one."""
    try:
        report = json.loads((folder / JSON_NAME).read_bytes())
        if not str(report["schema"]).startswith(_SCHEMA):
            return {}
        return {JSON_NAME: {}, HTML_NAME: {}, **report["sizes"]["files"]}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # none of ours
        return {}


def _is_as_written(file: Path, record: Any) -> bool:
    if not isinstance(record, Mapping) or file.is_symlink() or not file.is_file():
        return False
    size = file.stat().st_size
    if "bytes" in record and record["bytes"] != size:
        return False
    if "sha256" in record and size <= _HASHED_BYTES:
        return hashlib.sha256(file.read_bytes()).hexdigest() == record["sha256"]
    return True


@contextmanager
def writing(output: Path) -> Iterator[Path]:
    """Makes the output and its work folder, and keeps other runs out of them.

    The work folder is gone after success and after input that was refused, unless it was there
    before; after anything else what the store in it holds is left, for the run that goes on.

    Args:
        output: The folder to write.

    Yields:
        The work folder.

    Raises:
        InvalidInputError: Another run is writing there, or the folders cannot be made.
    """
    work = output / WORK_NAME
    made = next(iter(_missing(output)), None)
    existed = work.exists()
    try:
        try:
            work.mkdir(parents=True, exist_ok=True)
            lock = (work / _LOCK).open("w")
        except OSError as error:
            what = f"{error.filename} cannot be written: {error.strerror}"
            raise InvalidInputError.one(str(output), what, _OTHER) from None
        with lock:
            _take(lock.fileno(), output)
            try:
                yield work
            except InvalidInputError:
                if not existed:
                    shutil.rmtree(work, ignore_errors=True)
                raise
            else:
                shutil.rmtree(work, ignore_errors=True)
            finally:
                if work.exists() and os.listdir(work) == [_LOCK]:
                    shutil.rmtree(work, ignore_errors=True)
    finally:
        _remove_empty(output, made)


def _missing(folder: Path) -> list[Path]:
    """The folders that have to be made for one to be there, the outermost first."""
    return [place for place in (*reversed(folder.parents), folder) if not os.path.exists(place)]


def _remove_empty(output: Path, made: Path | None) -> None:
    """Removes the output and the folders above it that were made for it."""
    place = output
    with suppress(OSError):
        while made is not None and place.is_relative_to(made):
            place.rmdir()
            place = place.parent


def _take(descriptor: int, output: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InvalidInputError.one(
            str(output), "another run is writing it", "wait for it, or choose another"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise


def write_checkpoint(store: Store, checkpoint: Receipt, report: Report, output: Path) -> None:
    """Writes the checkpoint's files, its report and its page, and removes those before them.

    Args:
        store: Where the files are.
        checkpoint: The merge step's receipt.
        report: Of the checkpoint.
        output: The folder, whose content :func:`output_problems` has let pass.

    Raises:
        QuantlibError: Somebody has put something else there meanwhile.
        OSError: There is no room, or no permission. What was there before is as it was, unless all
            of the new files had been written.
    """
    made = output / WORK_NAME / _MADE
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    names = checkpoint.facts["checkpoint_files"]
    for name in names:
        store.export_file(checkpoint.path(name), made / name)
    (made / HTML_NAME).write_text(render_html(report), encoding="utf-8")
    (made / JSON_NAME).write_bytes(report.to_json())
    if problems := output_problems(output, overwrite=True):
        raise QuantlibError("\n".join(map(str, problems)))
    replaced = _content(output) - {CONFIG_NAME, JSON_NAME}
    for name in (CONFIG_NAME, *replaced, JSON_NAME):
        (output / name).unlink(missing_ok=True)
    for name in {*names, HTML_NAME} - {CONFIG_NAME}:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(made / name, output / name)
    # The report stays there as well until the end: it says whose the files are that were moved.
    shutil.copyfile(made / JSON_NAME, output / JSON_NAME)
    os.replace(made / CONFIG_NAME, output / CONFIG_NAME)
    shutil.rmtree(made)
    with suppress(OSError):  # another run's work
        made.parent.rmdir()
