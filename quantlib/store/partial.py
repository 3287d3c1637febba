"""What an unfinished step has done already, for the run that goes on with it.

It lies under ``partial/<step>/<key>/`` until the step is committed. Files are written before the
note that names them, and are taken only as far as they have the digests in it; so a process may be
killed at any point, and what cannot be used is as if it were not there.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from quantlib.errors import StoreError
from quantlib.store.base import Store
from quantlib.store.hashing import hash_file
from quantlib.store.receipt import FileRecord

FOLDER = "partial"
_NOTE = "note.json"


class Note(BaseModel):
    """What is there: files by name, and what the step says of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    files: dict[str, FileRecord]
    state: dict[str, Any]


class Partial:
    """The unfinished work of one step.

    Args:
        store: Where it is kept.
        step: Name of the step.
        key: The step's key.
    """

    def __init__(self, store: Store, step: str, key: str) -> None:
        self._store = store
        self._folder = f"{FOLDER}/{step}/{key}"

    def read(self, folder: Path) -> dict[str, Any] | None:
        """Fetches what is there.

        Args:
            folder: Gets the files.

        Returns:
            What :meth:`write` was given; None where there is nothing that can be used.
        """
        try:
            note = Note.model_validate_json(bytes(self._store.read(f"{self._folder}/{_NOTE}")))
            for name, record in note.files.items():
                self._store.export_file(f"{self._folder}/{name}", folder / name)
                if hash_file(folder / name) != record.sha256:
                    return None
        except (StoreError, ValidationError, RecursionError):
            return None
        return note.state

    def write(self, folder: Path, names: list[str], state: dict[str, Any]) -> None:
        """Keeps files, instead of those that were kept before and are not named now.

        Args:
            folder: Where they are; they stay there.
            names: Their names. One that is kept already is not written again.
            state: JSON values.

        Raises:
            StoreError: They could not be written.
        """
        kept = self._note()
        before = {} if kept is None else kept.files
        files = {}
        for name in names:
            if name in before:
                files[name] = before[name]
                continue
            digest = hash_file(folder / name)
            self._store.import_file(folder / name, f"{self._folder}/{name}", digest)
            files[name] = FileRecord(bytes=(folder / name).stat().st_size, sha256=digest)
        note = {"files": {n: r.model_dump(exclude_none=True) for n, r in files.items()}}
        self._store.put_bytes(json.dumps(note | {"state": state}).encode(), self._path)
        for name in before.keys() - files.keys():
            self._store.delete(f"{self._folder}/{name}")

    def clear(self) -> None:
        """Removes everything."""
        with suppress(StoreError):  # gc does
            for file in list(self._store.list(self._folder)):
                self._store.delete(file.path)

    @property
    def _path(self) -> str:
        return f"{self._folder}/{_NOTE}"

    def _note(self) -> Note | None:
        try:
            return Note.model_validate_json(bytes(self._store.read(self._path)))
        except (StoreError, ValidationError):
            return None
