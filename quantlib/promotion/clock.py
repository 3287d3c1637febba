"""Where promotion gets the time from, and how it waits."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Clock:
    """The machine's clock. Tests have one of their own, which waits for nobody."""

    def monotonic(self) -> float:
        """Seconds since some moment, which never go back."""
        return time.monotonic()

    def utc(self) -> datetime:
        """The time of day."""
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)

    def stamp(self) -> str:
        """The time of day, as annotations hold it."""
        return self.utc().isoformat(timespec="seconds")


SYSTEM_CLOCK = Clock()
