"""A model in a local folder, in Hugging Face's layout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantlib.checkpoint.checkpoint import Checkpoint
from quantlib.checkpoint.header import TensorInfo
from quantlib.checkpoint.index import copy_problems
from quantlib.checkpoint.source import FolderSource
from quantlib.errors import InvalidInputError, Problem
from quantlib.sources.inspection import Kind, kind_of, model_files, open_model
from quantlib.sources.scan import ShowProgress, hash_and_scan
from quantlib.store import FileRecord, StepOutput
from quantlib.store.hashing import hash_file


@dataclass(frozen=True)
class ExaminedFolder:
    """A model whose every byte was read and found good.

    Attributes:
        path: The folder.
        kind: What it is.
        files: The files that belong to the model, with their digests.
    """

    path: Path
    kind: Kind
    files: Mapping[str, FileRecord]

    def import_into(self, output: StepOutput) -> None:
        """Takes the model's files over into a step's folder."""
        for name, record in self.files.items():
            # Resolved: a hub cache's snapshot is a folder of symbolic links.
            output.add_local_file(name, (self.path / name).resolve(), record)


def open_folder(path: Path) -> Checkpoint:
    """Opens a model in a folder, reading no weight.

    Raises:
        InvalidInputError: There is no model that can be quantized; all problems at once.
    """
    where = str(path)
    try:
        if not path.exists():
            remedy = "give a folder with a model checkpoint"
            if not path.is_absolute() and len(path.parts) == 2:
                remedy += f", or hf://{path.as_posix()} for a model on the hub"
            raise InvalidInputError.one(where, "there is no such folder", remedy)
        if not path.is_dir():
            raise InvalidInputError.one(
                where, "is not a folder", "give the folder that holds config.json"
            )
        return open_model(FolderSource(path))
    except OSError as error:
        raise InvalidInputError.one(where, f"cannot be read: {error.strerror}") from None


def folder_problems(path: Path) -> list[Problem]:
    """Everything wrong with a folder that can be seen without reading a weight."""
    try:
        open_folder(path)
    except InvalidInputError as error:
        return list(error.problems)
    return []


def examine_folder(path: Path, progress: ShowProgress) -> ExaminedFolder:
    """Reads a model once: digests of its files, and a scan of its weights for NaN and Inf.

    Args:
        path: The folder.
        progress: Shows how far it is.

    Raises:
        InvalidInputError: Something is wrong with it; all problems at once.
    """
    checkpoint = open_folder(path)
    problems: list[Problem] = []
    tensors: dict[str, list[TensorInfo]] = defaultdict(list)
    for info in (*checkpoint.tensors.values(), *checkpoint.copies):
        tensors[info.file].append(info)
    total = sum(info.bytes for info in checkpoint.tensors.values())
    files = {}
    with progress("Reading weights", total, "bytes") as advance:
        for name in model_files(checkpoint):
            file = path / name
            try:
                if name in tensors:
                    digest, found = hash_and_scan(file, tensors[name], advance)
                    problems += found
                else:
                    digest = hash_file(file)
                count = len(tensors[name]) if name in tensors else None
                files[name] = FileRecord(bytes=file.stat().st_size, sha256=digest, tensors=count)
            except OSError as error:
                problems.append(Problem(str(file), f"cannot be read: {error.strerror}"))
    problems += copy_problems(checkpoint.source, checkpoint.tensors, checkpoint.copies)
    if problems:
        raise InvalidInputError(problems)
    return ExaminedFolder(path, kind_of(checkpoint), files)
