"""What a walk over blocks has done so far, kept so that a killed step goes on where it was."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from quantlib.store import StepOutput

_MOST_TIMES_LONGER = 20
"""Work between two savings is at least so much longer than saving takes: that costs 5 % at most."""


class Kept:
    """Keeps files and a state of one step.

    In a folder a block's work takes far longer than keeping it, and every block is kept. Over a
    slow line to a bucket several blocks may lie between.

    Attributes:
        folder: Where the files to keep are written, and found after :meth:`resume`.
    """

    def __init__(self, output: StepOutput) -> None:
        self.folder = output.scratch / "kept"
        self.folder.mkdir()
        self._partial = output.partial
        self._seconds = 0.0
        self._last = time.monotonic()

    def resume(self) -> dict[str, Any] | None:
        """The state that an earlier run kept last, with its files in the folder; None for none."""
        return self._partial.read(self.folder)

    def path(self, name: str) -> Path:
        """Where to write a file."""
        return self.folder / name

    @property
    def due(self) -> bool:
        """Whether enough was done since the last time."""
        return time.monotonic() - self._last >= _MOST_TIMES_LONGER * self._seconds

    def save(self, names: list[str], state: dict[str, Any]) -> None:
        """Keeps files and a state in the place of those before.

        Args:
            names: Files in the folder; what has a name that was kept before is the same file.
            state: JSON values.

        Raises:
            StoreError: They could not be written.
        """
        started = time.monotonic()
        self._partial.write(self.folder, names, state)
        self._last = time.monotonic()
        self._seconds = self._last - started
