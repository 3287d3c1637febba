"""What this process has moved and taken so far: figures of a step are made of it."""

from __future__ import annotations

import resource
import sys
import threading


class Usage:
    """Sums over the whole process; threads may add to them.

    Attributes:
        read_bytes: Contents that came from a store.
        written_bytes: Contents that went to one.
        gpu_seconds: Time of work on CUDA devices, times their number.
        peak_bytes: Largest memory of what another process started for this one.
    """

    def __init__(self) -> None:
        self.read_bytes = self.written_bytes = self.peak_bytes = 0
        self.gpu_seconds = 0.0
        self._lock = threading.Lock()

    def read(self, count: int) -> None:
        """Counts what was read."""
        with self._lock:
            self.read_bytes += count

    def written(self, count: int) -> None:
        """Counts what was written."""
        with self._lock:
            self.written_bytes += count


usage = Usage()
"""Of this process."""


def peak_bytes() -> int:
    """The largest memory of this process, or of a process that it started and that has ended."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(each).ru_maxrss for each in who) * 1024


def gpu_peak_bytes() -> int | None:
    """The largest memory that torch has held on one GPU; None where it has used none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    devices = range(torch.cuda.device_count())
    return max(torch.cuda.max_memory_reserved(device) for device in devices)
